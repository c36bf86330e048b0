"""Members shared out over processes: nothing but the time depends on how."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch
from playing import rollout
from torch import nn

from es_flipout import Flipout, FlipoutES, GRUPolicy, Independent, LowRank, MLPPolicy, make_vec
from es_flipout.envs import make_env as make_env_official
from es_flipout.envs.native import native_maker
from es_flipout.rollout import (
    BaselinePlayer,
    DevicePlayer,
    Episodes,
    GymnasiumRollout,
    HostPlayer,
    WorkerPlayer,
    reset_seeds,
)
from es_flipout.rollout.claims import Claims
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig
from es_flipout.run.make_player import make_player

LIMIT = {"max_episode_steps": 40}
MEMBERS = 12


def assert_same(one, other):
    assert torch.equal(one.returns, other.returns)
    assert torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.observations.mean, other.observations.mean)
    assert torch.equal(one.observations.m2, other.observations.m2)
    assert one.failures == other.failures


# Other processes cannot import this module, so its functions travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def setting(env_id: str, policy_class=MLPPolicy, family=Flipout(), members=MEMBERS, fused=True):  # noqa: B008 - it is frozen
    env = make_vec(env_id, 5, info=False, fused=fused, **LIMIT)
    torch.manual_seed(0)
    policy = policy_class(env.single_observation_space, env.single_action_space)
    es = FlipoutES(policy, population_size=members, sigma=0.1, perturbation=family)
    return env, policy, es


def workers(env_id: str, policy: nn.Module, envs: int, count: int) -> WorkerPlayer:
    make_env = partial(native_maker(env_id, **LIMIT), envs, info=False, threads=1)
    return WorkerPlayer.of_envs(policy, make_env, count)


@pytest.mark.parametrize(
    ("env_id", "policy_class", "family"),
    [
        ("Hopper-v5", MLPPolicy, Flipout()),
        ("Humanoid-v5", MLPPolicy, LowRank(1)),
        ("HalfCheetah-v5", MLPPolicy, Independent()),
        ("Hopper-v5", GRUPolicy, Flipout(num_bases=2)),
    ],
    ids=str,
)
def test_processes_give_what_one_process_gives(env_id, policy_class, family):
    env, policy, es = setting(env_id, policy_class, family)
    with closing(workers(env_id, policy, envs=2, count=3)) as player:
        for generation in range(2):  # the second with other weights and observation statistics
            population, seeds = es.ask(), reset_seeds(MEMBERS, 2, generation=generation)
            expected = rollout(HostPlayer(env), population, seeds, episode_limit=30)
            assert_same(rollout(player, population, seeds, episode_limit=30), expected)
            es.tell(expected.fitness)
            policy.normalizer.merge(expected.observations)


def test_a_process_that_is_killed_changes_nothing(monkeypatch):
    env, policy, es = setting("Hopper-v5")
    population, seeds = es.ask(), reset_seeds(MEMBERS, 3)
    expected = rollout(HostPlayer(env), population, seeds)
    with closing(workers("Hopper-v5", policy, envs=2, count=2)) as player:
        victims, receive = [player._seats[0]], player._receive

        def kill_one_first(*arguments):
            if victims:
                assert victims[0].shares  # episodes have been handed out
                os.kill(victims.pop().worker.process.pid, signal.SIGKILL)
            receive(*arguments)

        monkeypatch.setattr(player, "_receive", kill_one_first)
        assert_same(rollout(player, population, seeds), expected)
        assert not victims
        assert all(seat.worker.process.is_alive() for seat in player._seats)
        assert_same(rollout(player, population, seeds), expected)


DIED = "the worker process died (exit code -9)"


def make_deadly(num_envs, deadly, deaths):
    """Makes Hoppers, of which the episodes of some reset seeds kill their process in the third step."""
    env = native_maker("Hopper-v5", **LIMIT)(num_envs, info=False, threads=1, fused=False)
    reset, step, playing = env.reset, env.step, {}

    def noting_reset(*, seed=None, options=None):
        for index in np.flatnonzero(options["reset_mask"]).tolist():
            playing[index] = (seed[index], 0)
        return reset(seed=seed, options=options)

    def deadly_step(actions):
        for index, (seed, steps) in playing.items():
            playing[index] = seed, steps + 1
            if seed in deadly and steps == 2:
                with deaths.open("a") as file:
                    file.write(f"{seed}\n")
                os.kill(os.getpid(), signal.SIGKILL)
        return step(actions)

    env.reset, env.step = noting_reset, deadly_step
    return env


@pytest.mark.parametrize(("envs", "deadly"), [(4, {40}), (16, {5, 6, 40})])
def test_members_that_kill_their_workers_are_found_among_many(tmp_path, envs, deadly):
    env, policy, es = setting("Hopper-v5", members=64, fused=False)
    population, deaths = es.ask(), tmp_path / "deaths"
    expected = HostPlayer(env).play(population, Episodes.of_population(range(64)))
    make = partial(make_deadly, envs, deadly, deaths)
    with closing(WorkerPlayer.of_envs(policy, make, 2)) as player:
        found = player.play(population, Episodes.of_population(range(64)))
    assert found.faults == dict.fromkeys(sorted(deadly), DIED)
    others = [row for row in range(64) if row not in deadly]
    np.testing.assert_array_equal(found.returns[others], expected.returns[others])
    assert len(deaths.read_text().split()) <= 12 * len(deadly)


@pytest.mark.parametrize("kind", ["host", "workers", "baseline"])
def test_any_rows_of_a_table_may_be_played_by_anybody(kind):
    env, policy, es = setting("Hopper-v5")
    population = es.ask()
    whole = Episodes.of_population(reset_seeds(MEMBERS, 2), limit=20)
    expected = HostPlayer(env).play(population, whole.take(np.arange(24)))
    rows = np.array([21, 3, 2, 8, 9, 0, 17, 16, 5])
    make_env = partial(make_env_official, "Hopper-v5", disable_env_checker=True, **LIMIT)
    player = {
        "host": lambda: HostPlayer(make_vec("Hopper-v5", 2, info=False, **LIMIT)),
        "workers": lambda: workers("Hopper-v5", policy, envs=2, count=2),
        "baseline": lambda: BaselinePlayer(policy, partial(GymnasiumRollout, make_env), num_workers=2),
    }[kind]()
    with closing(player):
        part = player.play(population, whole.take(rows))
    assert part.unplayed == 0
    np.testing.assert_allclose(part.returns, expected.returns[rows], rtol=1e-4)
    assert part.lengths.tolist() == expected.lengths[rows].tolist()
    whole.put(rows, part)
    assert whole.unplayed == 24 - len(rows)
    np.testing.assert_array_equal(whole.returns[rows], part.returns)


@pytest.mark.parametrize("kind", ["host", "device", "workers"])
def test_the_caller_does_something_else_once_while_others_play(kind):
    engine = "warp" if kind == "device" else "auto"
    env = make_vec("Hopper-v5", 4, info=False, engine=engine, **LIMIT)
    policy = MLPPolicy(env.single_observation_space, env.single_action_space)
    es = FlipoutES(policy, population_size=MEMBERS, sigma=0.1)
    others_play = []

    def meanwhile():
        others_play.append(kind == "workers" and all(seat.shares for seat in player._seats))

    player = {
        "host": lambda: HostPlayer(env),
        "device": lambda: DevicePlayer.of(env),
        "workers": lambda: workers("Hopper-v5", policy, envs=2, count=2),
    }[kind]()
    with closing(env), closing(player):
        rollout(player, es.ask(), range(MEMBERS), meanwhile=meanwhile)
    assert others_play == [kind == "workers"]


class HasALock(MLPPolicy):
    def __getstate__(self):
        raise TypeError("it cannot be pickled")


class IsOfThisProcess(MLPPolicy):
    def __setstate__(self, state):
        raise TypeError("it cannot be unpickled")


@pytest.mark.parametrize("policy_class", [HasALock, IsOfThisProcess])
def test_a_policy_that_no_process_can_be_sent_is_evaluated_in_this_one(policy_class):
    config = Config(
        env=EnvConfig("Hopper-v5", LIMIT, num_envs=32),
        es=ESConfig(population_size=32),
        evaluation=EvaluationConfig(interval=0),
        threads=2,
        device="cpu",
    )
    env = make_vec("Hopper-v5", 1)
    with closing(
        make_player(config, policy_class(env.single_observation_space, env.single_action_space))
    ) as one:
        assert isinstance(one, HostPlayer)
    with closing(
        make_player(config, MLPPolicy(env.single_observation_space, env.single_action_space))
    ) as two:
        assert isinstance(two, WorkerPlayer)


def test_if_it_matters_who_plays_beside_whom_the_number_of_workers_does_not():
    env, policy, es = setting("Hopper-v5", members=24)
    env.close()
    policy.network[0].weight.requires_grad_(False)  # nothing is known of such a policy
    population, seeds = es.ask(), reset_seeds(24, 2)
    with closing(HostPlayer(make_vec("Hopper-v5", 3, info=False, **LIMIT), in_companies=True)) as player:
        expected = rollout(player, population, seeds)
    for count in (1, 2, 3):
        with closing(workers("Hopper-v5", policy, 3, count)) as player:
            assert_same(rollout(player, population, seeds), expected)
            player._seats[0].worker.kill()  # the next generation begins with one that has not said anything
            assert_same(rollout(player, population, seeds), expected)


@pytest.mark.parametrize(("envs", "company"), [(2, 4), (1, None)])
def test_companies_have_whole_blocks_and_are_always_the_same(envs, company):
    _, policy, _ = setting("Hopper-v5")
    policy.network[0].weight.requires_grad_(False)
    episodes = Episodes.of_population(np.arange(4))
    with closing(workers("Hopper-v5", policy, envs, 2)) as player:
        for seat in player._seats:
            seat.num_envs = 0  # as of a worker that has replaced another
        assert player._shares(episodes, Claims(episodes))._company == company
