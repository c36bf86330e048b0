"""HostPlayer: what it says of a member is what that member does alone, officially."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from playing import Played, rollout

from es_flipout.envs import TorchVectorEnv, make_vec
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.normalization import RunningStatistics
from es_flipout.perturbations import Flipout, Independent, LowRank
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population
from es_flipout.rollout import Episodes, HostPlayer, PlayStoppedError, evaluate

TOLERANCE = 1e-9
"""The batched forward and the written-out one differ by float64 rounding, 1e-16; actions are here rounded to
the action space's float32, so both drive the same physics to the last bit, save for the one action in
some 1e8 that the difference carries over a rounding boundary."""

TASKS = {
    # Falls after some 10 to 40 steps: members of very different lengths, ended by both flags.
    "InvertedPendulum-v5": {"max_episode_steps": 30},
    "Humanoid-v5": {"max_episode_steps": 40},
    "HalfCheetah-v5": {"max_episode_steps": 12},
}
ON_EACH_TASK = pytest.mark.parametrize("env_id", sorted(TASKS))
MEMBERS = 12
SEEDS = [900, 17, 350, 2, 111, 64, 5, 808, 23, 42, 707, 1]
"""Reset seeds of the members, in no order, so that a mix-up cannot go unseen."""


def native(env_id, num_envs, *, threads=2, dtype=torch.float64):
    env = make_vec(env_id, num_envs, dtype=dtype, threads=threads, **TASKS[env_id])
    step = env.step
    env.step = lambda actions: step(actions.to(torch.float32))
    return env


def population_for(env, size=MEMBERS, *, sigma=0.3, family=Flipout(num_bases=2), antithetic=True):  # noqa: B008 - frozen
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(
        env.single_observation_space, env.single_action_space, hidden_sizes=(16,), generator=generator
    ).to(getattr(env, "dtype", torch.float32))
    noise = family.sample(dict(policy.named_parameters()), size, generator, antithetic=antithetic)
    return Population(policy, noise, sigma)


def official_episode(env, population, member, seed):
    """Rolls one member out with its written-out weights; returns its return, length and observations."""
    weights = population.member(member)
    observation, _ = env.reset(seed=seed)
    total, observations, ended = 0.0, [], False
    while not ended:
        observations.append(observation)
        row = torch.from_numpy(observation).unsqueeze(0)
        action = torch.func.functional_call(population.policy, weights, (row,))[0]
        observation, reward, terminated, truncated, _ = env.step(action.to(torch.float32).numpy())
        total += reward
        ended = terminated or truncated
    return total, len(observations), np.stack(observations)


def official_episodes(env_id, population):
    with deprecations_silenced():
        env = gym.make(env_id, **TASKS[env_id])
    with torch.no_grad():
        return [official_episode(env, population, m, SEEDS[m]) for m in range(population.size)]


def altered(env, alter):
    """Has `alter` change what every step of the environment returns."""
    step = env.step
    env.step = lambda actions: alter(*step(actions))
    return env


def at_most(steps: int):
    """Stops an evaluation that would go on for ever."""
    asked = itertools.count()
    return lambda: next(asked) >= steps


def assert_same(one: Played, other: Played) -> None:
    """Asserts that two evaluations are equal to the last bit."""
    assert torch.equal(one.returns, other.returns)
    assert torch.equal(one.lengths, other.lengths)
    for name in ("count", "mean", "m2"):
        assert torch.equal(getattr(one.observations, name), getattr(other.observations, name)), name


@ON_EACH_TASK
@pytest.mark.parametrize("num_envs", [4, 16], ids=["fewer-envs", "more-envs"])
def test_a_member_scores_what_it_scores_alone_in_the_official_environment(env_id, num_envs):
    env = native(env_id, num_envs)
    population = population_for(env)
    expected = official_episodes(env_id, population)
    result = rollout(HostPlayer(env), population, SEEDS)
    fitness = [total for total, _, _ in expected]
    np.testing.assert_allclose(result.fitness.numpy(), fitness, rtol=TOLERANCE, atol=TOLERANCE)
    assert result.lengths.tolist() == [[length] for _, length, _ in expected]
    assert result.returns.shape == (MEMBERS, 1)
    if env_id != "HalfCheetah-v5":
        assert len(result.lengths.unique()) > 2  # envs were refilled at different times


@ON_EACH_TASK
def test_observation_statistics_are_of_exactly_what_members_acted_on(env_id):
    env = native(env_id, 5)
    population = population_for(env)
    seen = np.concatenate([rows for _, _, rows in official_episodes(env_id, population)])
    statistics = rollout(HostPlayer(env), population, SEEDS).observations
    assert statistics.count.item() == len(seen)
    np.testing.assert_allclose(statistics.mean.numpy(), seen.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), seen.var(axis=0), rtol=1e-9, atol=1e-12)


def test_a_simulation_that_blows_up_spoils_its_own_fitness_alone():
    calls = itertools.count(1)

    def show_nan_to_env_2_after_the_third_step(observations, *rest):
        if next(calls) == 3:
            observations[2] = torch.nan
        return observations, *rest

    env = native("HalfCheetah-v5", MEMBERS)
    population = population_for(env)
    plain = rollout(HostPlayer(env), population, SEEDS)
    result = rollout(HostPlayer(altered(env, show_nan_to_env_2_after_the_third_step)), population, SEEDS)
    others = [member for member in range(MEMBERS) if member != 2]
    assert result.fitness[2].isnan()
    assert result.failures.total() == 1
    assert torch.equal(result.fitness[others], plain.fitness[others])
    assert result.observations.mean.isfinite().all()
    assert result.observations.m2.isfinite().all()
    assert result.observations.count == plain.observations.count - plain.lengths[2]


@pytest.mark.parametrize("num_envs", [4, 16])
def test_reward_after_the_end_of_an_episode_never_counts(num_envs):
    def add_a_bonus_on_every_row(observations, rewards, *rest):
        return observations, rewards + 1.0, *rest

    env = native("Humanoid-v5", num_envs)
    population = population_for(env)
    plain = rollout(HostPlayer(env), population, SEEDS)
    result = rollout(HostPlayer(altered(env, add_a_bonus_on_every_row)), population, SEEDS)
    assert len(result.lengths.unique()) > 2
    # One bonus for each step of the member's own episode, none for its env's idle time.
    torch.testing.assert_close(result.returns, plain.returns + result.lengths, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("members", "num_envs", "spent_steps"),
    [
        # Upright for 3 steps each. Members 0 1 | 2 3 | 4 -: three rounds of 3 steps in 2 envs.
        pytest.param(5, 2, 18, id="last-round-half-empty"),
        pytest.param(4, 2, 12, id="always-full"),
        # Two of five envs never get a member.
        pytest.param(3, 5, 15, id="more-envs-than-members"),
    ],
)
def test_counts_live_steps_and_idle_envs(members, num_envs, spent_steps):
    env = make_vec("InvertedPendulum-v5", num_envs, threads=1, max_episode_steps=3)
    population = population_for(env, members, sigma=0.01, family=Flipout(), antithetic=False)
    result = rollout(HostPlayer(env), population, SEEDS[:members])
    assert result.lengths.tolist() == [[3]] * members
    assert result.fitness.tolist() == [3.0] * members
    assert result.env_steps == 3 * members
    assert result.spent_steps == spent_steps
    assert result.live_share == pytest.approx(3 * members / spent_steps)


def test_each_member_gets_its_own_seed():
    env = native("HalfCheetah-v5", 4)
    population = population_for(env)
    player = HostPlayer(env)
    result = rollout(player, population, SEEDS)
    swapped = SEEDS.copy()
    swapped[1], swapped[10] = swapped[10], swapped[1]
    other = rollout(player, population, swapped)
    assert (result.fitness != other.fitness).nonzero().flatten().tolist() == [1, 10]


def test_evaluating_again_gives_the_same():
    env = native("Humanoid-v5", 5)
    population = population_for(env)
    player = HostPlayer(env)
    first, second = rollout(player, population, SEEDS), rollout(player, population, SEEDS)
    assert torch.equal(first.fitness, second.fitness)
    assert torch.equal(first.observations.m2, second.observations.m2)


def test_evaluating_changes_neither_policy_nor_noise():
    env = native("InvertedPendulum-v5", 5)
    population = population_for(env)
    before = copy.deepcopy(population)
    rollout(HostPlayer(env), population, SEEDS)
    for name, value in before.policy.state_dict().items():
        assert torch.equal(population.policy.state_dict()[name], value), name
    for name, value in before.member(3).items():
        assert torch.equal(population.member(3)[name], value), name


@dataclass(frozen=True)
class Setting:
    """A short task whose members' episodes end at different times."""

    env_id: str
    kwargs: dict
    members: int
    episodes: int = 1

    def played(self, family, *sizes, threads=1, dtype=torch.float32, concurrent=True):
        envs = [make_vec(self.env_id, size, threads=threads, dtype=dtype, **self.kwargs) for size in sizes]
        population = population_for(envs[0], self.members, family=family)
        rng = np.random.default_rng(0)
        # A policy that has seen observations: their moments are part of what must be equal.
        first = make_vec(self.env_id, 20, **self.kwargs).reset(seed=0)[0]
        seen = RunningStatistics(first.shape[1])
        seen.update(first)
        population.policy.normalizer.merge(seen)
        seeds = rng.integers(0, 10_000, (self.members, self.episodes)).tolist()
        return rollout(HostPlayer(*envs, concurrent=concurrent), population, seeds)


HOPPER = Setting("Hopper-v5", {"max_episode_steps": 60}, members=64)
PENDULUM = Setting("InvertedPendulum-v5", {"max_episode_steps": 30}, members=32, episodes=3)
HUMANOID = Setting(
    "Humanoid-v5",
    {"max_episode_steps": 25, "include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0},
    members=32,
)


FAMILIES = pytest.mark.parametrize(
    "family", [Flipout(), Flipout(4, "gaussian"), LowRank(2), Independent()], ids=str
)


@FAMILIES
@pytest.mark.parametrize("setting", [HOPPER, PENDULUM], ids=lambda setting: setting.env_id)
def test_envs_and_threads_change_no_bit(setting, family):
    expected = setting.played(family, 16)
    assert len(expected.lengths.unique()) > 5
    assert expected.observations.count == expected.env_steps == expected.lengths.sum()
    for sizes in ((64,), (7, 9)):
        for threads in (1, 2):
            assert_same(setting.played(family, *sizes, threads=threads), expected)
    for sizes in ((setting.members * setting.episodes,), (40, 24), (3,), (4, 1, 2)):
        assert_same(setting.played(family, *sizes), expected)
    assert_same(setting.played(family, 7, 20, concurrent=False), expected)


@FAMILIES
def test_envs_and_threads_change_no_bit_of_a_wide_observation(family):
    expected = HUMANOID.played(family, 16)
    assert len(expected.lengths.unique()) > 3
    for sizes in ((32,), (13, 6)):
        assert_same(HUMANOID.played(family, *sizes, threads=2), expected)


def test_nor_in_float64():
    expected = HOPPER.played(Flipout(num_bases=4), 16, dtype=torch.float64)
    for sizes in ((3,), (80,), (40, 24)):
        assert_same(HOPPER.played(Flipout(num_bases=4), *sizes, threads=2, dtype=torch.float64), expected)


def test_several_episodes_of_a_member_are_what_each_is_alone():
    env = native("InvertedPendulum-v5", 5, dtype=torch.float32)
    population = population_for(env)
    player = HostPlayer(env)
    seeds = np.random.default_rng(1).integers(0, 1000, (MEMBERS, 3))
    result = rollout(player, population, seeds.tolist())
    assert result.returns.shape == result.lengths.shape == (MEMBERS, 3)
    singles = [rollout(player, population, seeds[:, episode].tolist()) for episode in range(3)]
    assert torch.equal(result.returns, torch.cat([each.returns for each in singles], dim=1))
    assert torch.equal(result.lengths, torch.cat([each.lengths for each in singles], dim=1))
    torch.testing.assert_close(result.fitness, result.returns.sum(dim=1) / 3)
    assert result.observations.count == sum(each.observations.count for each in singles)


@pytest.mark.parametrize("sizes", [(5,), (3, 4)], ids=str)
def test_a_stop_is_obeyed_before_the_next_step_and_leaves_the_environments_usable(sizes):
    taken = []

    def count(*result):
        taken.append(1)
        return result

    population = population_for(native("InvertedPendulum-v5", 1))
    player = HostPlayer(*(altered(native("InvertedPendulum-v5", size), count) for size in sizes))
    with pytest.raises(PlayStoppedError):
        rollout(player, population, SEEDS, should_stop=lambda: len(taken) >= 4)
    assert 4 <= len(taken) < 4 + len(sizes)  # a loop may have been in its step
    fresh = HostPlayer(native("InvertedPendulum-v5", 5))
    assert_same(rollout(player, population, SEEDS), rollout(fresh, population, SEEDS))
    # Fewer members than envs: what the stopped evaluation left in the others is not stepped on.
    with pytest.raises(PlayStoppedError):
        rollout(player, population, SEEDS, should_stop=lambda: len(taken) % 3 == 2)
    few = population_for(native("InvertedPendulum-v5", 1), 2, family=Flipout())
    assert_same(rollout(player, few, [4, 5]), rollout(fresh, few, [4, 5]))


def test_observations_that_have_no_flat_form_are_refused():
    class Speaks(gym.Env):
        observation_space, action_space = gym.spaces.Text(3), gym.spaces.Discrete(2)

    env = gym.vector.SyncVectorEnv([Speaks, Speaks], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="no flat form of Text observations"):
        HostPlayer(env)


def test_an_evaluator_needs_an_environment_and_each_but_once():
    env = native("InvertedPendulum-v5", 2)
    for envs in ((), (env, env)):
        with pytest.raises(ValueError, match="needs one environment, or several different ones"):
            HostPlayer(*envs)


@pytest.mark.parametrize("count", [MEMBERS - 1, MEMBERS + 1])
def test_a_wrong_number_of_seeds_is_refused(count):
    env = native("InvertedPendulum-v5", 2)
    population = population_for(env)
    for seeds in (range(count), [[0, 1]] * count):
        with pytest.raises(ValueError, match=f"reset seeds of {count} members for a population of {MEMBERS}"):
            evaluate(population, env, reset_seeds=seeds)
    with pytest.raises(ValueError, match=rf"got \[{MEMBERS}, 0\]"):
        evaluate(population, env, reset_seeds=[[]] * MEMBERS)


def test_a_table_of_members_that_do_not_exist_is_refused():
    env = native("InvertedPendulum-v5", 2)
    with pytest.raises(ValueError, match=f"episodes of member {MEMBERS} for a population of {MEMBERS}"):
        rollout(HostPlayer(env), population_for(env), range(MEMBERS + 1))


@dataclass(frozen=True)
class Script:
    """What happens in an episode; of its steps the first is 1, and 0 is its reset."""

    length: int
    fails_at: int | None = None
    bad_reward_at: int | None = None
    bad_reward: float = np.nan
    nan_observation_at: int | None = None

    @property
    def steps(self) -> int:
        """Env steps that it takes."""
        return self.length if self.fails_at is None else self.fails_at


class ScriptedVectorEnv(TorchVectorEnv):
    """Plays the script of an episode's seed: observation (seed, t), reward 1000 seed + t at step t.

    Args:
        scripts: script of each seed, or its length.
        starts: how many rows a reset can start.
    """

    def __init__(self, num_envs: int, scripts: Mapping[int, Script | int], starts: int | None = None) -> None:
        self.num_envs = num_envs
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.scripts = {
            seed: script if isinstance(script, Script) else Script(script) for seed, script in scripts.items()
        }
        self.starts = num_envs if starts is None else starts
        self.played: list[int] = []
        self.live_steps = 0
        self._seed, self._time = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, np.bool_)

    def reset(self, *, seed=None, options=None):
        rows = np.flatnonzero(self._reset_mask(options))[: self.starts].tolist()
        assert self._ended[rows].all(), "an episode was thrown away"
        started = np.zeros(self.num_envs, np.bool_)
        started[rows] = True
        for row in rows:
            self._seed[row], self._time[row] = self._env_seeds(seed)[row], 0
            self.played.append(int(self._seed[row]))
        self._ended[rows] = False
        info = self._failed(started)
        return self._observe(), info if self.starts == self.num_envs else info | {"started": started}

    def step(self, actions):
        self._check_actions(actions)
        live = ~self._ended
        self.live_steps += int(live.sum())
        self._time += live
        scripts = [self.scripts.get(seed) for seed in self._seed.tolist()]
        rewards = np.where(live, 1000.0 * self._seed + self._time, 0.0)
        for row in np.flatnonzero(live):
            if scripts[row].bad_reward_at == self._time[row]:
                rewards[row] = scripts[row].bad_reward
            self._ended[row] = self._time[row] == scripts[row].length
        info = self._failed(live)
        if info:
            rewards[info["failed"]] = 0.0
        ended = torch.from_numpy(self._ended.copy())
        even = torch.from_numpy(self._seed % 2 == 0)  # ended by one flag or the other
        return self._observe(), torch.from_numpy(rewards), ended & even, ended & ~even, info

    def retire(self, mask):
        self._ended |= mask

    def _failed(self, rows):
        failed = np.zeros(self.num_envs, np.bool_)
        for row in np.flatnonzero(rows):
            failed[row] = self.scripts[self._seed[row]].fails_at == self._time[row]
        self._ended |= failed
        reasons = [f"broke at step {self._time[row]}" for row in np.flatnonzero(failed)]
        return {"failed": failed, "failures": reasons} if reasons else {}

    def _observe(self):
        observations = np.stack([self._seed, self._time], axis=1).astype(np.float64)
        for row, (seed, time) in enumerate(zip(self._seed.tolist(), self._time.tolist(), strict=True)):
            if seed in self.scripts and self.scripts[seed].nan_observation_at == time:
                observations[row] = np.nan
        return torch.from_numpy(observations)


def play(scripts: Sequence[Script | int], *sizes: int, seeds=None, starts=None, **options):
    """Plays scripts, a member each; the seed of the n-th is n unless `seeds` [P, E] says otherwise."""
    seeds = [[seed] for seed in range(len(scripts))] if seeds is None else seeds
    envs = [ScriptedVectorEnv(size, dict(enumerate(scripts)), starts) for size in sizes]
    population = population_for(envs[0], len(seeds), family=Flipout(), antithetic=False)
    result = rollout(HostPlayer(*envs), population, seeds, should_stop=at_most(5000), **options)
    played = sorted(itertools.chain.from_iterable(env.played for env in envs))
    assert played == sorted(itertools.chain.from_iterable(seeds)), "not every episode was played once"
    return result


def scripted_return(seed: int, length: int) -> float:
    return length * 1000.0 * seed + length * (length + 1) / 2


def assert_saw(result: Played, lengths: Mapping[int, int]) -> None:
    """Asserts that the moments are of the first `length` observations of each seed's episode."""
    rows = np.array([(seed, time) for seed, length in lengths.items() for time in range(length)])
    assert result.observations.count == len(rows)
    np.testing.assert_allclose(result.observations.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.observations.variance.numpy(), rows.var(axis=0), rtol=1e-12)


def test_an_env_takes_the_next_episode_at_once():
    # Env A plays 0 0 0 4 4, env B plays 1 2 3 3 -: five steps of two envs, one of the ten idle.
    lengths = [3, 1, 1, 2, 2]
    result = play(lengths, 2)
    assert result.lengths.flatten().tolist() == lengths
    assert result.returns.flatten().tolist() == [scripted_return(*each) for each in enumerate(lengths)]
    assert (result.spent_steps, result.env_steps, result.live_share) == (10, 9, 0.9)
    assert_saw(result, dict(enumerate(lengths)))


@pytest.mark.parametrize("sizes", [(1,), (3,), (40,), (2, 5), (4, 1, 1)], ids=str)
def test_every_step_of_every_episode_counts_once(sizes):
    lengths = np.random.default_rng(0).integers(1, 9, 24).tolist()
    result = play(lengths, *sizes)
    assert result.lengths.flatten().tolist() == lengths
    assert result.returns.flatten().tolist() == [scripted_return(*each) for each in enumerate(lengths)]
    assert result.env_steps == sum(lengths)
    assert result.failures == Counter()
    assert_saw(result, dict(enumerate(lengths)))


def test_no_env_is_idle_while_an_episode_waits():
    # Only at the very end: while the longest of the last four (8 steps at most) is played out.
    lengths = np.random.default_rng(1).integers(1, 9, 200).tolist()
    result = play(lengths, 4)
    assert result.spent_steps - result.env_steps <= 3 * 7


def test_episodes_of_members_stand_in_their_rows():
    result = play([2, 3, 1, 4, 1, 2], 2, seeds=[[4, 0], [3, 1], [5, 2]])
    assert result.lengths.tolist() == [[1, 2], [4, 3], [2, 1]]
    assert result.returns.tolist() == [
        [scripted_return(4, 1), scripted_return(0, 2)],
        [scripted_return(3, 4), scripted_return(1, 3)],
        [scripted_return(5, 2), scripted_return(2, 1)],
    ]
    assert result.fitness.tolist() == [(4001 + 3) / 2, (12010 + 3006) / 2, (10003 + 2001) / 2]


@pytest.mark.parametrize("sizes", [(2,), (9,), (1, 3)], ids=str)
def test_an_episode_limit_cuts_off_what_is_longer(sizes):
    lengths = [3, 1, 7, 4, 5, 9]
    result = play(lengths, *sizes, episode_limit=4)
    cut = [min(length, 4) for length in lengths]
    assert result.lengths.flatten().tolist() == cut
    assert result.returns.flatten().tolist() == [scripted_return(*each) for each in enumerate(cut)]
    assert result.failures == Counter()
    assert_saw(result, dict(enumerate(cut)))


def test_an_episode_limit_is_of_one_evaluation():
    env = native("HalfCheetah-v5", 5)
    population, player = population_for(env), HostPlayer(env)
    whole = rollout(player, population, SEEDS)
    cut = rollout(player, population, SEEDS, episode_limit=7)
    assert cut.lengths.tolist() == [[7]] * MEMBERS
    assert not (cut.returns == whole.returns).any()
    assert_same(rollout(player, population, SEEDS), whole)


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (20,), (2, 3)], ids=str)
def test_a_fault_costs_its_own_episode_alone(sizes):
    scripts: list[Script | int] = [3, 2, 4, 1, 3, 5, 2, 3, 2, 4, 1, 2]
    scripts[0] = Script(3, fails_at=0)
    scripts[2] = Script(4, fails_at=2)
    scripts[3] = Script(3, fails_at=0)
    scripts[5] = Script(5, bad_reward_at=2)
    scripts[7] = Script(3, bad_reward_at=3, bad_reward=-np.inf)
    scripts[10] = Script(4, fails_at=4)
    scripts[11] = Script(2, nan_observation_at=2)  # its last, on which nobody acts
    result = play(scripts, *sizes)
    good = {seed: script for seed, script in enumerate(scripts) if isinstance(script, int)} | {11: 2}
    returns = [scripted_return(seed, good[seed]) if seed in good else np.nan for seed in range(12)]
    np.testing.assert_array_equal(result.returns.flatten().numpy(), returns)
    assert result.lengths.flatten().tolist() == [0, 2, 2, 0, 3, 5, 2, 3, 2, 4, 4, 2]
    assert_saw(result, good)
    assert result.failures == {
        "broke at step 0": 2,
        "broke at step 2": 1,
        "broke at step 4": 1,
        "a reward or an observation is not finite": 2,
    }


def test_an_episode_whose_member_saw_nan_has_failed():
    # The reward shows nothing of it, yet the member was not judged by what it does.
    result = play([2, Script(3, nan_observation_at=1), 4, 1], 2)
    np.testing.assert_array_equal(
        result.returns.flatten().numpy(),
        [scripted_return(0, 2), np.nan, scripted_return(2, 4), scripted_return(3, 1)],
    )
    assert_saw(result, {0: 2, 2: 4, 3: 1})
    assert result.failures.total() == 1


def test_a_member_is_judged_by_all_its_episodes_or_not_at_all():
    result = play([2, Script(3, fails_at=1), 1, 1], 2, seeds=[[0, 1], [2, 3]])
    np.testing.assert_array_equal(result.fitness.numpy(), [np.nan, (2001 + 3001) / 2])


def test_an_evaluation_ends_if_no_episode_can_begin():
    result = play([Script(1, fails_at=0)] * 7, 2)
    assert result.returns.isnan().all()
    assert (result.env_steps, result.spent_steps, result.live_share) == (0, 0, 0.0)
    assert result.failures == {"broke at step 0": 7}
    assert result.observations.count == 0
    assert result.observations.mean.tolist() == [0.0, 0.0]


def test_rows_that_cannot_start_at_once_are_asked_for_again():
    # One start at a time: A plays 0 0 2 2 and B plays - 1 1 -.
    result = play([2, 2, 2], 2, starts=1)
    assert result.lengths.flatten().tolist() == [2, 2, 2]
    assert result.returns.flatten().tolist() == [scripted_return(seed, 2) for seed in range(3)]
    assert (result.spent_steps, result.env_steps) == (8, 6)


@pytest.mark.parametrize("sizes", [(1,), (3,), (20,), (2, 3)], ids=str)
def test_a_slow_start_and_a_fault_together(sizes):
    scripts = [2, Script(3, fails_at=0), 1, Script(4, fails_at=1), 3, Script(2, fails_at=0), 2, 5]
    result = play(scripts, *sizes, starts=1)
    good = {seed: script for seed, script in enumerate(scripts) if isinstance(script, int)}
    returns = [scripted_return(seed, good[seed]) if seed in good else np.nan for seed in range(8)]
    np.testing.assert_array_equal(result.returns.flatten().numpy(), returns)
    assert_saw(result, good)
    assert result.failures == {"broke at step 0": 2, "broke at step 1": 1}


def test_nothing_is_spent_on_what_a_stopped_evaluation_left():
    env = ScriptedVectorEnv(3, dict.fromkeys(range(6), 5))
    player = HostPlayer(env)
    population = population_for(env, 6, family=Flipout(), antithetic=False)
    with pytest.raises(PlayStoppedError):
        rollout(player, population, range(6), should_stop=at_most(2))
    assert env.live_steps == 3 * 2
    population = population_for(env, 1, family=Flipout(), antithetic=False)
    assert rollout(player, population, [4]).returns.tolist() == [[scripted_return(4, 5)]]
    assert env.live_steps == 3 * 2 + 5


class FarAway(ScriptedVectorEnv):
    """Adds a large constant to what it shows."""

    def _observe(self):
        return super()._observe() + 1e9


def test_an_error_in_one_environment_stops_the_others_and_is_what_is_told():
    def broken(*result):
        raise KeyError("lost")

    endless, lame = ScriptedVectorEnv(2, dict.fromkeys(range(4), 10**9)), ScriptedVectorEnv(2, {0: 1, 2: 1})
    player = HostPlayer(endless, altered(lame, broken))
    population = population_for(endless, 4, family=Flipout(), antithetic=False)
    with pytest.raises(KeyError, match="lost"):
        rollout(player, population, [1, 0, 3, 2], should_stop=at_most(100_000))
    assert 0 <= endless.live_steps < 100_000


def test_a_large_constant_does_not_drown_the_moments():
    env = FarAway(2, {0: 5, 1: 3})
    population = population_for(env, 2, family=Flipout(), antithetic=False)
    result = rollout(HostPlayer(env), population, [0, 1])
    rows = np.array([*((0, time) for time in range(5)), *((1, time) for time in range(3))])
    np.testing.assert_allclose(result.observations.mean.numpy() - 1e9, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result.observations.variance.numpy(), rows.var(axis=0), rtol=1e-6)


def test_tables_of_several_populations_make_one():
    first = play([3, Script(2, fails_at=1)], 2)
    second = play([1, 2, Script(2, fails_at=1), Script(3, fails_at=0)], 3)
    both = Played(Episodes.concatenated([first.episodes, second.episodes]))
    np.testing.assert_array_equal(both.returns, torch.cat([first.returns, second.returns]))
    assert both.lengths.flatten().tolist() == [3, 1, 1, 2, 1, 0]
    assert both.spent_steps == first.spent_steps + second.spent_steps
    assert both.failures == {"broke at step 1": 2, "broke at step 0": 1}
    rows = np.array([(0, 0), (0, 1), (0, 2), (0, 0), (1, 0), (1, 1)])
    assert both.observations.count == 6
    np.testing.assert_allclose(both.observations.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(both.observations.variance.numpy(), rows.var(axis=0), rtol=1e-12)


class CountingEnv(gym.Env):
    """Observes (t, L) and pays t at step t of an episode of L steps; L is 2, 3 or 4.

    L follows from the seed of the reset, and without one from the number of episodes so far. A seed of at
    least 1000 makes the second step raise.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self.raises = seed is not None and seed >= 1000
        self.length, self.time = 2 + (self.episodes if seed is None else seed) % 3, 0
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        assert self.time <= self.length, "stepped past its end"
        if self.raises and self.time == 2:
            raise RuntimeError("out of paint")
        over = self.time == self.length
        return self._observe(), float(self.time), over and self.length != 3, over and self.length == 3, {}

    def _observe(self):
        return np.array([self.time, self.length], np.float32)


def counting(num_envs: int, mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([CountingEnv] * num_envs, autoreset_mode=mode)


def assert_whole_episodes(result: Played) -> None:
    """Asserts that each episode has 2, 3 or 4 steps, the rewards of exactly these, and their observations."""
    lengths = result.lengths.flatten().tolist()
    assert set(lengths) <= {2, 3, 4}
    assert result.returns.flatten().tolist() == [length * (length + 1) / 2 for length in lengths]
    rows = np.array([(time, length) for length in lengths for time in range(length)])
    assert result.observations.count == result.env_steps == len(rows)
    np.testing.assert_allclose(result.observations.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.observations.variance.numpy(), rows.var(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("sizes", [(1,), (3,), (4,), (MEMBERS,), (20,), (2, 5)], ids=str)
def test_environments_of_any_autoreset_mode_give_whole_episodes(sizes, mode):
    envs = [counting(size, mode) for size in sizes]
    player = HostPlayer(*envs)
    population = population_for(envs[0])
    for _ in range(2):  # the second time the environments are under way
        result = rollout(player, population, SEEDS, should_stop=at_most(500))
        assert_whole_episodes(result)
        assert result.failures == Counter()
    if mode == AutoresetMode.DISABLED:
        assert result.lengths.flatten().tolist() == [2 + seed % 3 for seed in SEEDS]
    else:
        assert len(result.lengths.unique()) > 1


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 7])
def test_they_are_usable_after_a_stop(stop_at, mode):
    env = counting(4, mode)
    player = HostPlayer(env)
    with pytest.raises(PlayStoppedError):
        rollout(player, population_for(env), SEEDS, should_stop=at_most(stop_at))
    # More envs than episodes, then fewer.
    few = population_for(env, 2, family=Flipout())
    assert_whole_episodes(rollout(player, few, [7, 8], should_stop=at_most(500)))
    assert_whole_episodes(rollout(player, population_for(env), SEEDS, should_stop=at_most(500)))


def test_self_resetting_environments_waste_no_more_than_their_resets():
    # One env, so that nothing waits: every step but those of NEXT_STEP's own resets is somebody's.
    for mode, wasted in ((AutoresetMode.SAME_STEP, 0), (AutoresetMode.NEXT_STEP, MEMBERS)):
        env = counting(1, mode)
        result = rollout(HostPlayer(env), population_for(env), SEEDS, should_stop=at_most(500))
        assert 0 <= result.spent_steps - result.env_steps <= wasted


@pytest.mark.parametrize(
    "mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name
)
def test_a_limit_needs_environments_that_can_be_reset_at_any_time(mode):
    env = counting(2, mode)
    with pytest.raises(ValueError, match="an episode limit needs environments that can be reset"):
        rollout(HostPlayer(env), population_for(env), SEEDS, episode_limit=3)


def test_a_limit_holds_for_others_environments_too():
    env = counting(5, AutoresetMode.DISABLED)
    result = rollout(HostPlayer(env), population_for(env), SEEDS, episode_limit=3)
    lengths = [min(2 + seed % 3, 3) for seed in SEEDS]
    assert result.lengths.flatten().tolist() == lengths
    assert result.returns.flatten().tolist() == [length * (length + 1) / 2 for length in lengths]


def test_an_environment_that_raises_fails_the_episodes_under_way_and_goes_on():
    env = counting(3, AutoresetMode.DISABLED)
    seeds = [0, 1, 2, 3, 4, 1005, 6, 7, 8, 9, 10, 11]
    result = rollout(HostPlayer(env), population_for(env), seeds, should_stop=at_most(500))
    failed = result.returns.flatten().isnan()
    assert failed[5]
    assert 1 <= failed.sum() <= 3
    assert result.failures == {"RuntimeError: out of paint": int(failed.sum())}
    lengths = [2 + seed % 3 for seed in seeds]
    for member in (~failed).nonzero().flatten().tolist():
        length = lengths[member]
        assert result.lengths[member] == length
        assert result.returns[member] == length * (length + 1) / 2


def test_an_environment_that_does_not_say_how_it_resets_is_refused():
    env = counting(2, AutoresetMode.DISABLED)
    env.metadata = {}
    with pytest.raises(ValueError, match=r'metadata must have an "autoreset_mode"'):
        HostPlayer(env)
