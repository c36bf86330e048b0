"""The process pool agrees with the vectorized player; what befalls a worker changes no result."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from playing import Played, rollout
from torch import nn

from es_flipout import FlipoutES
from es_flipout.envs import GymnasiumVectorEnv, make_env, make_vec
from es_flipout.perturbations import Flipout, Independent, LowRank
from es_flipout.policies import CNNPolicy, GRUPolicy, LinearPolicy, MLPPolicy
from es_flipout.population import Population
from es_flipout.rollout import (
    BaselinePlayer,
    GymnasiumRollout,
    HostPlayer,
    PlayError,
    PlayStoppedError,
)

# Other processes cannot import this module, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TOLERANCE = 1e-9
"""As in test_vectorized: in float64 both drive the same physics, to the last bit but for a rare rounding."""
SEEDS = [900, 17, 350, 2, 111, 64, 5, 808]
PENDULUM = {"max_episode_steps": 30}


@pytest.fixture
def make_pool():
    """Makes players of official environments, or of a rollout's; closes them after the test."""
    made = []

    def make(policy, env, num_workers=2, **kwargs):
        if isinstance(env, str):
            env = partial(make_env, env, disable_env_checker=True, **kwargs)
        made.append(BaselinePlayer(policy, lambda: GymnasiumRollout(env), num_workers=num_workers))
        return made[-1]

    yield make
    for player in made:
        player.close()


def make_policy(env, kind=MLPPolicy, dtype=torch.float64, **options):
    """Returns a policy for an environment, single or vectorized, whose actions are not all alike."""
    spaces = (
        getattr(env, "single_observation_space", env.observation_space),
        getattr(env, "single_action_space", env.action_space),
    )
    return kind(*spaces, generator=torch.Generator().manual_seed(0), **options).to(dtype)


def ask(policy, size=8, sigma=0.3, **options):
    return FlipoutES(policy, population_size=size, sigma=sigma, **options).ask()


def pendulum(dtype=torch.float32, kind=LinearPolicy, **options):
    with gym.make("InvertedPendulum-v5") as env:
        return make_policy(env, kind, dtype, **options)


def workers():
    """Returns the ids of all processes that this one has started."""
    return {process.pid for process in mp.active_children()}


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextlib.contextmanager
def play_error(line):
    """Asserts that a `PlayError` of just this line is raised; what else there is to say is in its notes."""
    with pytest.raises(PlayError) as raised:
        yield
    assert str(raised.value) == line


def wait_for_the_end_of(pids):
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def assert_same(one: Played, other: Played) -> None:
    """Asserts that two evaluations are equal to the last bit."""
    assert torch.equal(one.returns.nan_to_num(nan=-1e9), other.returns.nan_to_num(nan=-1e9))
    assert torch.equal(one.lengths, other.lengths)
    assert one.failures == other.failures
    for name in ("count", "mean", "m2"):
        assert torch.equal(getattr(one.observations, name), getattr(other.observations, name)), name


def assert_agree(one: Played, other: Played) -> None:
    """Asserts that two players say the same, to rounding."""
    np.testing.assert_allclose(one.returns, other.returns, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(one.lengths, other.lengths)
    assert one.failures == other.failures
    assert one.observations.count == other.observations.count
    for name in ("mean", "variance"):
        moments = (getattr(each.observations, name) for each in (one, other))
        np.testing.assert_allclose(*moments, rtol=1e-9, atol=1e-12)


# --- the same as the vectorized player -------------------------------------------------------------


UPRIGHT = {"terminate_when_unhealthy": False}


@pytest.mark.parametrize(
    ("env_id", "kwargs", "family", "antithetic"),
    [
        ("HalfCheetah-v5", {}, Flipout(), True),
        ("HalfCheetah-v5", {}, Flipout(4, "gaussian"), False),
        ("HalfCheetah-v5", {}, LowRank(2), True),
        ("HalfCheetah-v5", {}, Independent(), False),
        ("Humanoid-v5", {}, Flipout(), False),
        ("Humanoid-v5", {}, Flipout(4, "gaussian"), True),
        ("Humanoid-v5", {}, LowRank(2), False),
        ("Humanoid-v5", {}, Independent(), True),
        ("Humanoid-v5", UPRIGHT, Flipout(), True),
    ],
    ids=lambda value: str(value) if value else "",
)
def test_it_agrees_with_the_vectorized_evaluator(make_pool, env_id, kwargs, family, antithetic):
    kwargs = {"max_episode_steps": 200, **kwargs}
    generations, size = (1, 2) if UPRIGHT.items() <= kwargs.items() else (2, len(SEEDS))
    env = make_vec(env_id, size, dtype=torch.float64, threads=2, info=False, **kwargs)
    policy = make_policy(env, hidden_sizes=(16,))
    pool, vectorized = make_pool(policy, env_id, **kwargs), HostPlayer(env)
    es = FlipoutES(policy, population_size=size, sigma=0.1, perturbation=family, antithetic=antithetic)
    first = None
    for generation in range(generations):
        population, seeds = es.ask(), [seed + generation for seed in SEEDS[:size]]
        result = rollout(pool, population, seeds)
        assert_agree(result, rollout(vectorized, population, seeds))
        assert len(result.returns.unique()) == size
        assert result.observations.count == result.env_steps == result.spent_steps
        if env_id == "HalfCheetah-v5" or UPRIGHT.items() <= kwargs.items():
            assert (result.lengths == 200).all()
        else:
            assert len(result.lengths.unique()) > 2
        assert first is None or (result.returns != first.returns).all()
        first = result
        # The next generation has another center, and observations standardized by moments.
        es.tell(result.fitness)
        policy.normalizer.merge(result.observations)
    env.close()


def test_what_the_workers_play_is_what_the_population_is_now(make_pool):
    env = make_vec("InvertedPendulum-v5", 4, dtype=torch.float64, threads=1, **PENDULUM)
    policy = make_policy(env, hidden_sizes=(6,))
    policy.network[0].weight.requires_grad_(False)  # frozen, which workers must see change all the same
    pool = make_pool(policy, "InvertedPendulum-v5", **PENDULUM)
    vectorized = HostPlayer(env)
    es = FlipoutES(policy, population_size=8, sigma=0.3)
    populations = [es.ask(), es.ask_more()]
    results = [rollout(pool, population, SEEDS) for population in populations]
    for population, result in zip(populations, results, strict=True):
        assert_agree(result, rollout(vectorized, population, SEEDS))
    assert (results[0].returns != results[1].returns).any()
    with torch.no_grad():
        policy.network[0].weight.mul_(-3.0)
    changed = rollout(pool, populations[0], SEEDS)
    assert_agree(changed, rollout(vectorized, populations[0], SEEDS))
    assert (changed.returns != results[0].returns).any()
    es.sigma = 0.9
    es.tell(torch.cat([result.fitness for result in results]))
    assert_agree(rollout(pool, es.ask(), SEEDS), rollout(vectorized, es.ask(), SEEDS))


def test_a_recurrent_policy_starts_anew_with_every_episode(make_pool):
    env = make_vec("InvertedPendulum-v5", 5, dtype=torch.float64, threads=1, **PENDULUM)
    policy = make_policy(env, GRUPolicy, hidden_sizes=(5,), recurrent_size=4)
    population = ask(policy, sigma=0.5, perturbation=LowRank(2))
    seeds = [[seed, seed + 1, seed] for seed in SEEDS]
    result = rollout(make_pool(policy, "InvertedPendulum-v5", **PENDULUM), population, seeds)
    assert_agree(result, rollout(HostPlayer(env), population, seeds))
    assert torch.equal(result.returns[:, 0], result.returns[:, 2])
    assert (result.returns[:, 0] != result.returns[:, 1]).any()


def test_a_policy_of_images_plays_the_same_and_no_moments_are_kept(make_pool):
    catch = "examples.catch:Catch-v0"
    env = make_vec(catch, 3, dtype=torch.float64)
    policy = make_policy(env, CNNPolicy, conv_layers=[[4, 3, 1, 0]], hidden_sizes=(8,))
    population = ask(policy, 16)
    result = rollout(make_pool(policy, catch), population, range(16))
    assert_agree(result, rollout(HostPlayer(env), population, range(16)))
    assert len(result.returns.unique()) > 3
    assert result.observations.mean.shape == (0,)


@pytest.mark.parametrize("episode_limit", [None, 15])
def test_discrete_actions_several_episodes_and_a_limit(make_pool, episode_limit):
    kwargs = {"max_episode_steps": 40}
    env = make_vec("CartPole-v1", 3, engine="gymnasium", dtype=torch.float64, **kwargs)
    policy = make_policy(env, hidden_sizes=(8,), init="normc")
    population = ask(policy)
    seeds = np.random.default_rng(0).integers(0, 1000, (8, 3)).tolist()
    result = rollout(
        make_pool(policy, "CartPole-v1", **kwargs), population, seeds, episode_limit=episode_limit
    )
    assert_agree(result, rollout(HostPlayer(env), population, seeds, episode_limit=episode_limit))
    assert result.returns.shape == (8, 3)
    assert len(result.lengths.unique()) > 2
    assert result.lengths.max() == (episode_limit or 40)


class Drift(gym.Env):
    """Shows what follows from its seed and the time alone, far from zero; never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed, 0
        return self.observe(), {}

    def observe(self):
        return np.array([1e6 + np.sin(self.seed + self.time), self.time / 100])

    def step(self, action):
        self.time += 1
        return self.observe(), 1.0, False, False, {}


@pytest.mark.parametrize("steps", [1, 1024, 1025, 2500])
def test_moments_of_long_episodes_are_those_of_all_observations_that_were_acted_on(make_pool, steps):
    policy = make_policy(Drift(), LinearPolicy)
    result = rollout(make_pool(policy, Drift), ask(policy, 2), [3, 4], episode_limit=steps)
    times = np.arange(steps)
    seen = np.concatenate([np.stack([1e6 + np.sin(seed + times), times / 100], axis=1) for seed in (3, 4)])
    assert result.lengths.tolist() == [[steps]] * 2
    assert result.observations.count == 2 * steps
    np.testing.assert_allclose(result.observations.mean, seen.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(result.observations.variance, seen.var(axis=0), rtol=1e-9, atol=1e-15)


def test_the_number_of_workers_changes_no_bit(make_pool):
    policy = pendulum(kind=MLPPolicy)
    population = ask(policy, 20, perturbation=Flipout(2, "gaussian"))
    seeds = np.random.default_rng(0).integers(0, 1000, (20, 2)).tolist()
    pools = [make_pool(policy, "InvertedPendulum-v5", count, **PENDULUM) for count in (1, 2, 3)]
    assert [pool.num_workers for pool in pools] == [1, 2, 3]
    one, *others = (rollout(pool, population, seeds) for pool in pools)
    assert len(one.lengths.unique()) > 5
    for other in (*others, rollout(pools[2], population, seeds)):
        assert_same(one, other)


# --- workers that die ---------------------------------------------------------------------------------


class Haunted(gym.Wrapper):
    """In the third step of an episode of seed 13, writes `marker`, once, and waits to be killed."""

    def __init__(self, env, marker):
        super().__init__(env)
        self.marker = marker

    def reset(self, *, seed=None, options=None):
        self.waits, self.steps = seed == 13, 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.waits and self.steps == 3 and not self.marker.exists():
            new = self.marker.with_suffix(".new")
            new.write_text(str(os.getpid()))
            new.rename(self.marker)
            signal.pause()
        return super().step(action)


class Killer:
    """Kills the process that has written `marker`; asked as `should_stop`, so within an evaluation."""

    def __init__(self, marker):
        self.marker = marker
        self.killed = []

    def __call__(self):
        if not self.killed and self.marker.exists():
            self.killed.append(int(self.marker.read_text()))
            os.kill(self.killed[0], signal.SIGKILL)
        return False


@pytest.mark.parametrize("members", [8, 60], ids=["one-by-one", "chunks"])
def test_a_worker_killed_within_an_episode_changes_no_bit_and_is_replaced(make_pool, tmp_path, members):
    marker = tmp_path / "marker"
    policy = pendulum()
    population = ask(policy, members, sigma=0.05)
    seeds = [[100 + 2 * member, 101 + 2 * member] for member in range(members)]
    seeds[3][1] = 13
    before = workers()
    pool = make_pool(policy, lambda: Haunted(gym.make("InvertedPendulum-v5", **PENDULUM), marker))
    first = workers() - before
    assert len(first) == 2
    disturbed = rollout(pool, population, seeds, should_stop=(killer := Killer(marker)))
    second = workers() - before
    assert set(killer.killed) == first - second
    assert len(second) == pool.num_workers == 2
    # Nobody waits any more where the marker is.
    undisturbed = rollout(pool, population, seeds)
    assert workers() - before == second
    assert_same(disturbed, undisturbed)
    assert len(undisturbed.lengths.unique()) > 2
    assert undisturbed.lengths[3, 1] >= 3
    assert not undisturbed.failures


def test_no_worker_is_replaced_if_what_ended_it_stops_this_process_too(make_pool, monkeypatch):
    policy = pendulum()
    population, before = ask(policy), workers()
    pool = make_pool(policy, "InvertedPendulum-v5", **PENDULUM)
    expected = rollout(pool, population, SEEDS)
    first, receive = workers() - before, pool._receive
    ended = []

    def end_all_first(*arguments):
        for pid in first - set(ended):
            os.kill(pid, signal.SIGKILL)
            ended.append(pid)
        wait_for_the_end_of(ended)
        receive(*arguments)

    monkeypatch.setattr(pool, "_receive", end_all_first)
    with pytest.raises(PlayStoppedError):
        rollout(pool, population, SEEDS, should_stop=lambda: bool(ended))
    wait_until(lambda: not workers() & set(ended))  # the forkserver tells of an end a little later
    assert workers() == before
    monkeypatch.undo()
    assert_same(rollout(pool, population, SEEDS), expected)


def test_a_worker_killed_between_two_evaluations_is_replaced(make_pool):
    policy = pendulum()
    population = ask(policy)
    before = workers()
    pool = make_pool(policy, "InvertedPendulum-v5", **PENDULUM)
    expected = rollout(pool, population, SEEDS)
    for count in (1, 2):
        victims = sorted(workers() - before)[:count]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for_the_end_of(victims)
        assert_same(rollout(pool, population, SEEDS), expected)
        assert len(workers() - before) == pool.num_workers == 2


class Mortal(gym.Wrapper):
    """Kills its process at the second step after a reset with some seeds, and leaves a line in `deaths`."""

    def __init__(self, env, deaths, seeds):
        super().__init__(env)
        self.deaths, self.seeds = deaths, seeds

    def reset(self, *, seed=None, options=None):
        self.steps, self.seed = 0, seed
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.steps == 2 and self.seed in self.seeds:
            with self.deaths.open("a") as file:
                file.write(f"{self.seed}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


DIED = "the worker process died (exit code -9)"


@pytest.mark.parametrize(
    ("members", "attempts"),
    [
        pytest.param(6, 3, id="one-by-one"),
        pytest.param(40, 6, id="shares"),  # in a share, again, in halves, and alone
    ],
)
def test_a_member_that_kills_its_process_fails_alone(make_pool, tmp_path, members, attempts):
    policy = pendulum()
    population = ask(policy, members)
    seeds = [[2 * member, 2 * member + 1] for member in range(members)]
    deaths = tmp_path / "deaths"

    def make(*deadly):
        return lambda: Mortal(gym.make("InvertedPendulum-v5", **PENDULUM), deaths, deadly)

    expected = rollout(make_pool(policy, make()), population, seeds)
    before = workers()
    pool = make_pool(policy, make(5))  # the second episode of member 2
    for _ in range(2):
        result = rollout(pool, population, seeds)
        others = [member for member in range(members) if member != 2]
        assert result.fitness.isnan().nonzero().flatten().tolist() == [2]
        assert torch.equal(result.returns[others], expected.returns[others])
        assert torch.equal(result.lengths[others], expected.lengths[others])
        assert result.lengths[2].tolist() == [0, 0]
        assert result.failures == {DIED: 2}
        assert result.observations.count == result.env_steps == expected.lengths[others].sum()
        assert result.observations.m2.isfinite().all()
        assert len(workers() - before) == pool.num_workers == 2
    assert deaths.read_text().split() == ["5"] * (2 * attempts)


def test_it_gives_up_when_all_workers_die_and_is_usable_again(make_pool, tmp_path):
    policy = pendulum()
    population = ask(policy)
    deadly = range(100, 108)
    pool = make_pool(
        policy,
        lambda: Mortal(gym.make("InvertedPendulum-v5", **PENDULUM), tmp_path / "deaths", deadly),
    )
    expected = rollout(pool, population, SEEDS)
    with play_error(f"10 times in a row {DIED}"):
        rollout(pool, population, deadly)
    assert_same(rollout(pool, population, SEEDS), expected)


def test_workers_that_cannot_come_back_are_told_of_and_come_back_when_they_can(make_pool, tmp_path):
    no_more, before = tmp_path / "no-more", workers()

    def make():
        if no_more.exists():
            raise RuntimeError("no more of these")
        return gym.make("InvertedPendulum-v5", **PENDULUM)

    policy = pendulum()
    population = ask(policy)
    pool = make_pool(policy, make)
    expected = rollout(pool, population, SEEDS)
    no_more.touch()
    victims = workers() - before
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for_the_end_of(victims)
    for _ in range(2):
        with play_error("RuntimeError: no more of these"):
            rollout(pool, population, SEEDS)
    no_more.unlink()
    assert_same(rollout(pool, population, SEEDS), expected)


# --- environments and policies that raise -------------------------------------------------------------


class Faulty(gym.Env):
    """Walks for six steps; what goes wrong follows from the seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.kind, self.time, self.place = seed % 10, 0, self.np_random.normal()
        if self.kind == 1:
            raise RuntimeError(f"no start\nfrom {seed}")
        return self.observe(), {}

    def observe(self):
        if (self.kind, self.time) in ((2, 0), (3, 2)):
            return np.zeros(3)
        nan = self.kind == 4 and self.time == 2
        return np.array([self.place, np.nan if nan else self.time])

    def step(self, action):
        self.time += 1
        if self.kind == 5 and self.time == 3:
            raise ValueError("out of paint")
        if self.kind == 6 and self.time == 1:
            return self.observe(), 0.0
        if not np.isnan(action).any():
            self.place += float(action[0])
        bad = {7: np.nan, 8: np.inf, 9: "a lot"}.get(self.kind, 0.0) if self.time == 4 else 0.0
        return self.observe(), bad or self.place, False, self.time == 6, {}


def test_environments_fail_as_in_the_vectorized_evaluator(make_pool):
    policy = make_policy(Faulty())
    population = ask(policy, 20, antithetic=False)
    seeds = [[50 + member, 200] for member in range(20)]
    env = GymnasiumVectorEnv(Faulty, 7, dtype=torch.float64)
    expected = rollout(HostPlayer(env), population, seeds)
    assert expected.returns[:, 0].isnan().tolist() == [member % 10 > 0 for member in range(20)]
    assert not expected.returns[:, 1].isnan().any()
    assert len(expected.failures) == 8
    assert_agree(rollout(make_pool(policy, Faulty), population, seeds), expected)


class TooFast(gym.Wrapper):
    """Starts episodes of seed 13 with a speed that MuJoCo refuses, and resets, after one step."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        if seed == 13:
            pendulum = self.env.unwrapped
            pendulum.set_state(pendulum.init_qpos, np.full(2, 1e12))
        return observation, info


def test_an_episode_whose_physics_blew_up_has_failed_although_gymnasium_goes_on(make_pool):
    policy = pendulum()
    population = ask(policy, 6, sigma=0.05)
    pool = make_pool(policy, lambda: TooFast(gym.make("InvertedPendulum-v5", **PENDULUM)))
    expected = rollout(pool, population, SEEDS[:6])
    for _ in range(2):  # the next episode is not blamed
        result = rollout(pool, population, [*SEEDS[:3], 13, *SEEDS[4:6]])
        assert result.fitness.isnan().nonzero().flatten().tolist() == [3]
        others = [0, 1, 2, 4, 5]
        assert torch.equal(result.returns[others], expected.returns[others])
        (failure,) = result.failures
        assert failure.startswith("MuJoCo warning BADQ")


def test_a_task_of_ones_own_fails_as_in_the_vectorized_evaluator(make_pool):
    task = "scripts.faulty_envs:ExplodingPendulum-v0"
    env = make_vec(task, 5, dtype=torch.float64, max_episode_steps=30)
    policy = make_policy(env)
    population = ask(policy, 40)
    expected = rollout(HostPlayer(env), population, range(40))
    assert len(expected.failures) >= 2
    result = rollout(make_pool(policy, task, max_episode_steps=30), population, range(40))
    assert result.failures == expected.failures
    assert torch.equal(result.returns.isnan(), expected.returns.isnan())


class Touchy(nn.Module):
    """A linear policy that raises when `angry` is set."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("angry", torch.zeros(()))

    def forward(self, observations):
        if self.angry:
            raise ZeroDivisionError("leave me alone")
        return self.linear(observations)


def test_a_policy_that_raises_is_told_of_and_leaves_the_workers_usable(make_pool):
    policy = Touchy()
    pool = make_pool(policy, "InvertedPendulum-v5", **PENDULUM)
    expected = rollout(pool, ask(policy), SEEDS)
    for _ in range(2):
        policy.angry.fill_(1)
        with play_error("policy Touchy cannot act: ZeroDivisionError: leave me alone"):
            rollout(pool, ask(policy), SEEDS)
        policy.angry.fill_(0)
        assert_same(rollout(pool, ask(policy), SEEDS), expected)
        assert pool.num_workers == 2


# --- stops --------------------------------------------------------------------------------------------


class Endless(Drift):
    """Tells in `folder` that its process is at work, once it has taken some steps."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def step(self, action):
        if self.time == 50:
            (self.folder / f"{os.getpid()}.busy").touch()
        return super().step(action)


def test_a_stop_is_obeyed_although_no_episode_ends_and_leaves_the_workers_usable(make_pool, tmp_path):
    policy = make_policy(Drift(), LinearPolicy)
    population = ask(policy)
    before = workers()
    pool = make_pool(policy, partial(Endless, tmp_path))
    expected = rollout(pool, population, SEEDS, episode_limit=9)

    def both_are_busy():
        return len(list(tmp_path.glob("*.busy"))) == 2

    for _ in range(2):
        with pytest.raises(PlayStoppedError):
            rollout(pool, population, SEEDS, should_stop=both_are_busy)
        stopped = [int(path.stem) for path in tmp_path.glob("*.busy")]
        wait_for_the_end_of(stopped)  # nobody plays on for nothing
        for path in tmp_path.glob("*.busy"):
            path.unlink()
        assert_same(rollout(pool, population, SEEDS, episode_limit=9), expected)
        assert len(workers() - before) == pool.num_workers == 2


def test_whatever_should_stop_raises_stops_too(make_pool, tmp_path):
    policy = make_policy(Drift(), LinearPolicy)
    pool = make_pool(policy, partial(Endless, tmp_path))
    asked = itertools.count()

    def interrupt():
        if next(asked) > 3 and list(tmp_path.glob("*.busy")):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        rollout(pool, ask(policy), SEEDS, should_stop=interrupt)
    assert rollout(pool, ask(policy), SEEDS, episode_limit=9).lengths.tolist() == [[9]] * 8


# --- wrong uses ---------------------------------------------------------------------------------------


def _frozen(policy):
    policy.network[-1].bias.requires_grad_(False)
    return ask(policy)


def _without_origin(policy):
    population = ask(policy)
    return Population(policy, population.noise, population.sigma)


@pytest.mark.parametrize(
    ("population_of", "message"),
    [
        (lambda policy: ask(pendulum(kind=MLPPolicy)), "is not of the policy that the workers have"),
        (lambda policy: ask(pendulum(kind=MLPPolicy, hidden_sizes=(6,))), "is not of the policy"),
        (lambda policy: ask(policy.double()), "is not of the policy that the workers have"),
        (_frozen, "trains other parameters than the workers' policy"),
        (_without_origin, "its origin is not known"),
    ],
    ids=["layers", "widths", "dtype", "frozen", "no-origin"],
)
def test_populations_of_another_kind_are_refused(make_pool, population_of, message):
    policy = pendulum(kind=MLPPolicy, hidden_sizes=(5,))
    pool = make_pool(policy, "InvertedPendulum-v5", num_workers=1, **PENDULUM)
    with pytest.raises(ValueError, match=message):
        rollout(pool, population_of(policy), SEEDS)


def test_a_policy_elsewhere_than_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="need a policy whose state is tensors on the CPU"):
        BaselinePlayer(pendulum().to("meta"), lambda: None, num_workers=1)


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_workers_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match=f"num_workers must be >= 1, got {count}"):
        BaselinePlayer(
            pendulum(), lambda: GymnasiumRollout(lambda: gym.make("InvertedPendulum-v5")), num_workers=count
        )


def test_a_closed_evaluator_is_refused(make_pool):
    policy = pendulum()
    pool = make_pool(policy, "InvertedPendulum-v5", num_workers=1, **PENDULUM)
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        rollout(pool, ask(policy), SEEDS)


def _raise():
    raise LookupError("not here")


def _die():
    os._exit(7)


@pytest.mark.parametrize(
    ("make_rollout", "message"),
    [(_raise, "LookupError: not here"), (_die, "the worker process died (exit code 7)")],
    ids=["raises", "dies"],
)
def test_workers_that_cannot_start_are_told_of_in_a_line_and_none_is_left(make_rollout, message):
    before = workers()
    with play_error(message):
        BaselinePlayer(pendulum(), make_rollout, num_workers=2)
    assert workers() == before


# --- rollouts of the user's own -----------------------------------------------------------------------


def test_any_function_of_a_module_may_be_a_rollout(tmp_path):
    target, closed = torch.tensor([1.0, -2.0, 3.0, 0.5]), tmp_path

    class Distance:
        """Pays nearness of the weights to a target."""

        observation_size = None

        def play(self, policy, episodes, row):
            seed, rows = int(episodes.reset_seed[row]), np.array([row])
            if seed == 3:
                faults = {0: "three is too many"}
                episodes.record(rows, np.array([np.nan]), np.array([1]), faults=faults)
                return
            distance = (policy.weight[0] - target).square().sum() + policy.bias[0].square()
            episodes.record(rows, np.array([seed - float(distance)]), np.array([episodes.limit or 2]))

        def close(self):
            (closed / str(os.getpid())).touch()

    policy = nn.Linear(4, 1).double()
    population = ask(policy, 6, perturbation=LowRank(1))
    before = workers()
    pool = BaselinePlayer(policy, Distance, num_workers=2)
    pids = workers() - before
    result = rollout(pool, population, range(6), episode_limit=5)
    pool.close()
    assert {int(path.name) for path in closed.iterdir()} == pids
    for member in range(6):
        weights = population.member(member)
        nearness = -(weights["weight"][0] - target).square().sum() - weights["bias"][0].square()
        if member == 3:
            assert result.returns[member].isnan()
        else:
            torch.testing.assert_close(result.returns[member, 0], nearness.detach() + member)
    assert result.failures == {"three is too many": 1}
    assert result.lengths.flatten().tolist() == [5, 5, 5, 1, 5, 5]
    assert result.observations.mean.shape == (0,)


# --- nobody is left behind ----------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [None, signal.SIGKILL])
def test_no_worker_is_left_after_close(sent):
    before = workers()
    pool = BaselinePlayer(pendulum(), lambda: GymnasiumRollout(Drift), num_workers=2)
    pids = workers() - before
    assert len(pids) == 2
    if sent is not None:
        os.kill(min(pids), sent)
    pool.close()
    wait_for_the_end_of(pids)
    assert workers() == before


SCRIPT = """
import os
import gymnasium as gym
from pathlib import Path
from es_flipout import FlipoutES, LinearPolicy
from es_flipout.rollout import BaselinePlayer, Episodes, GymnasiumRollout

class Endless(gym.Env):
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        Path(f"{os.getpid()}.busy").touch()
        return self.observation_space.sample(), 0.0, False, False, {}

if __name__ == "__main__":
    policy = LinearPolicy(Endless.observation_space, Endless.action_space)
    pool = BaselinePlayer(policy, lambda: GymnasiumRollout(Endless), num_workers=2)
    population, parent = FlipoutES(policy, population_size=4, sigma=0.1).ask(), os.getppid()
    episodes = Episodes.of_population(range(4))
    pool.play(population, episodes, should_stop=lambda: os.getppid() != parent)
"""


def session(leader):
    """Returns the processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def test_no_process_outlives_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path, start_new_session=True)
    with parent:
        wait_until(lambda: len(list(tmp_path.glob("*.busy"))) == 2 or parent.poll() is not None)
        busy = {int(path.stem) for path in tmp_path.glob("*.busy")}
        assert parent.poll() is None
        assert busy | {parent.pid} < set(session(parent.pid))  # and the server that forks them
        parent.kill()
    wait_until(lambda: not session(parent.pid))
