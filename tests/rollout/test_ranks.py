"""RankPlayer: however many ranks play a table, each ends up with the same bits of all of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ranks import RankProcesses, on_ranks
from torch import nn

from es_flipout import Flipout, FlipoutES, GRUPolicy, Independent, LowRank, MLPPolicy, make_vec
from es_flipout.rollout import DevicePlayer, Episodes, HostPlayer, PlayError, PlayStoppedError, RankPlayer
from es_flipout.rollout.ranks import share_of_rank

MEMBERS = 24
LIMIT = {"max_episode_steps": 30}


@pytest.fixture(scope="module")
def three():
    ranks = RankProcesses(3)
    yield ranks
    ranks.close()


class Sigmoids(nn.Module):
    """A policy of which nothing says that torch rounds its rows alike in any company."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        sizes = observation_space.shape[0], 7, action_space.shape[0]
        self.layers = nn.Sequential(nn.Linear(*sizes[:2]), nn.Sigmoid(), nn.Linear(*sizes[1:]))

    def forward(self, observations):
        return self.layers(observations)


def setting(env_id, num_envs, policy_class=MLPPolicy, family=Flipout(num_bases=2), **options):  # noqa: B008 - frozen
    env = make_vec(env_id, num_envs, **LIMIT, **options)
    torch.manual_seed(0)
    policy = policy_class(env.single_observation_space, env.single_action_space)
    return env, FlipoutES(policy, population_size=MEMBERS, sigma=0.3, perturbation=family).ask()


def table(block_size=4):
    seeds = np.random.default_rng(0).integers(0, 1000, (MEMBERS, 2))
    return Episodes.of_population(seeds, block_size=block_size, action_noise=0.1)


def bits(episodes):
    """Returns everything that came of a table, to the last bit."""
    moments = episodes.observations()
    numbers = [moments.count.numpy(), moments.mean.numpy(), moments.m2.numpy()]
    numbers += [episodes.returns, episodes.lengths]
    return [each.tobytes() for each in numbers], dict(sorted(episodes.faults.items())), episodes.unplayed


@pytest.mark.parametrize(
    ("env_id", "policy_class", "family", "block_size"),
    [
        ("InvertedPendulum-v5", MLPPolicy, Flipout(num_bases=2), 1),
        ("InvertedPendulum-v5", MLPPolicy, Independent(), 30),
        ("InvertedPendulum-v5", Sigmoids, Flipout(), 4),
        ("InvertedPendulum-v5", GRUPolicy, LowRank(1), 4),
        pytest.param("Hopper-v5", MLPPolicy, Flipout(), 4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_ranks_get_the_bits_of_one_process(three, env_id, policy_class, family, block_size):
    def play(ranks):
        env, population = setting(env_id, 3, policy_class, family)
        player, mine = HostPlayer(env, in_companies=True), []
        if ranks is not None:
            own = player.play
            player.play = lambda *args, **options: mine.append(own(*args, **options).outcome().rows)
            player = RankPlayer(player, ranks)
        episodes = table(block_size)
        assert player.play(population, episodes) is episodes
        env.close()
        return bits(episodes), np.concatenate(mine or [np.arange(0)]).tolist()

    expected, _ = play(None)
    found = three.do(play)
    assert [each for each, _ in found] == [expected] * 3
    played = [rows for _, rows in found]
    assert sorted(sum(played[1:], played[0])) == list(range(2 * MEMBERS))  # each by one rank


def test_ranks_share_the_episodes(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)
        player, mine = HostPlayer(env), []
        own = player.play

        def record(population, episodes, *, should_stop, **options):
            def slowly():
                time.sleep(0.05)
                return should_stop()

            played = own(population, episodes, should_stop=slowly, **options)
            mine.append(int(np.isfinite(played.returns).sum()))

        player.play = record
        RankPlayer(player, ranks).play(population, table())
        return mine

    assert min(count for (count,) in three.do(play)) > 0


def test_more_ranks_than_blocks(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)
        player = HostPlayer(env) if ranks is None else RankPlayer(HostPlayer(env), ranks)
        return bits(player.play(population, Episodes.of_population(range(MEMBERS), block_size=20)))

    assert three.do(play) == [play(None)] * 3


def test_failed_episodes_have_failed_on_all_ranks(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)
        population.policy.head.register_forward_hook(
            lambda head, inputs, outputs: torch.where(outputs > 0.2, torch.nan, outputs)
        )
        player = HostPlayer(env) if ranks is None else RankPlayer(HostPlayer(env), ranks)
        return bits(player.play(population, table()))

    expected = play(None)
    assert 0 < len(expected[1]) < 2 * MEMBERS
    assert three.do(play) == [expected] * 3


def test_a_rank_that_cannot_play_ends_the_play_of_all(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)
        player = HostPlayer(env)
        if ranks.rank == 1:

            def fail(*args, **options):
                raise PlayError("this machine has no such thing")

            player.play = fail
        RankPlayer(player, ranks).play(population, table())

    assert three.do(play) == ["rank 1: this machine has no such thing"] * 3


@pytest.mark.slow
def test_if_a_rank_is_asked_to_stop_no_rank_has_a_table():
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)

        def should_stop():
            time.sleep(0 if ranks.rank == 2 else 0.1)  # nobody has played all before rank 2 begins
            return ranks.rank == 2

        with pytest.raises(PlayStoppedError):
            RankPlayer(HostPlayer(env), ranks).play(population, table(), should_stop=should_stop)
        return True

    assert on_ranks(3, play) == [True] * 3


def test_what_is_done_meanwhile_is_done_on_every_rank(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 3)
        calls = []
        RankPlayer(HostPlayer(env), ranks).play(population, table(), meanwhile=lambda: calls.append(1))
        return len(calls)

    assert three.do(play) == [1, 1, 1]


@pytest.mark.slow
def test_on_engine_warp_each_rank_plays_its_share_of_every_base(three):
    def play(ranks):
        env, population = setting("InvertedPendulum-v5", 4, engine="warp", device="cpu")
        player, shares = DevicePlayer(env), []
        if ranks is not None:
            own = player.play

            def record(population, episodes, **options):
                shares.append(episodes.member.tolist())
                return own(population, episodes, **options)

            player.play = record
            player = RankPlayer(player, ranks)
        episodes = table()
        player.prefetch(episodes.reset_seed.reshape(MEMBERS, -1))
        player.play(population, episodes)
        player.prefetch(episodes.reset_seed.reshape(MEMBERS, -1) + 1)
        player.play(population, again := table())
        env.close()
        assert bits(again)[0][3:] == bits(episodes)[0][3:]
        return episodes.returns, episodes.lengths, episodes.observations().mean.numpy(), shares[:1]

    returns, lengths, mean, _ = play(None)
    found = three.do(play)
    for own_returns, own_lengths, own_mean, _ in found:
        assert own_returns.tobytes() == returns.tobytes()
        assert own_lengths.tolist() == lengths.tolist()
        np.testing.assert_allclose(own_mean, mean, rtol=1e-12)
    members = [set(shares[0]) for *_, shares in found]
    assert members[0] == {0, 1, 2, 3, 12, 13, 14, 15}
    assert members[1] == {4, 5, 6, 7, 16, 17, 18, 19}


def test_a_policy_on_a_gpu_has_its_share_in_two_vector_environments(three):
    """With the CPU device in place of the GPU."""

    def play(ranks):
        _, population = setting("InvertedPendulum-v5", 1)
        player = HostPlayer(*(make_vec("InvertedPendulum-v5", 2, **LIMIT) for _ in range(2)))
        player.needs_fixed_share = lambda population: True
        episodes = (player if ranks is None else RankPlayer(player, ranks)).play(population, table())
        player.close()
        return episodes.returns.tobytes(), episodes.lengths.tolist(), episodes.observations().mean.numpy()

    *expected, mean = play(None)
    for *found, own_mean in three.do(play):
        assert found == expected
        np.testing.assert_allclose(own_mean, mean, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_shares_of_ranks_are_all_episodes(size):
    env, population = setting("InvertedPendulum-v5", 1, family=Flipout(num_bases=3))
    episodes = table()
    shares = [share_of_rank(population, episodes, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(episodes)))
    for rows in shares:  # as many of each base
        assert len(set(np.bincount(episodes.member[rows] // 8, minlength=3).tolist())) == 1
    env.close()
