"""Gymnasium environments in this process and in others: equal, independent, and hard to kill."""

from __future__ import annotations

import os
import signal
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

from es_flipout.envs import GymnasiumVectorEnv

# Other processes cannot import this module, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NUM_ENVS = 4
"""Of two processes the first has envs 0 and 1, the second envs 2 and 3."""
RAISE, EXIT, WAIT = 13, 14, 15
"""Actions or seeds that make the environment raise, its process kill itself, and the step take long."""
IN_EACH_PLACE = pytest.mark.parametrize("processes", [0, 2], ids=["here", "processes"])


class Toy(gym.Env):
    """Shows (process, draw of the seed, episode, step, steps ever); is paid what it did and did before."""

    observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
    action_space = spaces.Box(-100, 100, (1,), np.float32)

    def __init__(self, no_more=None, length=1000):
        if no_more is not None and Path(no_more).exists():
            raise RuntimeError("no more of these")
        self.length = length
        self.draw = self.episode = self.step_in_episode = self.steps = 0
        self.action = np.zeros(1, np.float32)

    def _observe(self):
        return np.array([os.getpid(), self.draw, self.episode, self.step_in_episode, self.steps], np.float64)

    def _break(self, code):
        if code == RAISE:
            raise ValueError(f"told to, in episode {self.episode}")
        if code == EXIT:
            os.kill(os.getpid(), signal.SIGKILL)
        if code == WAIT:
            time.sleep(0.2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._break(seed)
        self.draw, self.episode, self.step_in_episode = self.np_random.random(), self.episode + 1, 0
        self.action = np.zeros(1, np.float32)
        return self._observe(), {}

    def step(self, action):
        self._break(action[0])
        self.steps += 1
        self.step_in_episode += 1
        reward = 10.0 * float(action[0]) + float(self.action[0])
        self.action = action  # kept as it was given, as an environment may
        return self._observe(), reward, False, self.step_in_episode >= self.length, {}


class ThreeDials(gym.Env):
    """MultiDiscrete actions that do not start at 0."""

    observation_space = spaces.Box(-100, 100, (3,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3, 4], start=[0, -1, 5])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dials = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.dials.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.dials += action.astype(np.float32)
        return self.dials.copy(), float(self.dials @ action), bool(self.dials[2] > 20), False, {}


@pytest.fixture
def make():
    """Makes a vector environment; closes it after the test."""
    made = []

    def make(factory, num_envs=NUM_ENVS, **kwargs):
        made.append(GymnasiumVectorEnv(factory, num_envs, dtype=torch.float64, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def only(*flags):
    return {"reset_mask": np.array(flags, bool)}


def do(*actions):
    return torch.tensor(actions, dtype=torch.float32).unsqueeze(1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends between opening and reading
        return False


def wait_for_the_end_of(pids):
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.01)


# --- the same as environments stepped by hand --------------------------------------------------------


class HandWritten:
    """The contract of `TorchVectorEnv` in its plainest form."""

    def __init__(self, factory, num_envs):
        self.envs = [factory() for _ in range(num_envs)]
        self.observations = np.zeros((num_envs, *self.envs[0].observation_space.shape))
        self.terminated, self.truncated = np.ones(num_envs, bool), np.zeros(num_envs, bool)

    def reset(self, seed, mask):
        for i in np.flatnonzero(mask):
            self.observations[i], _ = self.envs[i].reset(seed=seed[i])
            self.terminated[i] = self.truncated[i] = False
        return self.observations.copy()

    def step(self, actions):
        rewards = np.zeros(len(self.envs))
        for i in np.flatnonzero(~(self.terminated | self.truncated)):
            (
                self.observations[i],
                rewards[i],
                self.terminated[i],
                self.truncated[i],
                _,
            ) = self.envs[i].step(actions[i])
        return self.observations.copy(), rewards, self.terminated.copy(), self.truncated.copy()


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(partial(gym.make, "CartPole-v1", max_episode_steps=25), id="discrete"),
        pytest.param(partial(gym.make, "Pendulum-v1", max_episode_steps=17), id="box"),
        pytest.param(partial(ThreeDials), id="multi-discrete"),
        pytest.param(partial(Toy, length=6), id="keeps-its-action"),
    ],
)
def test_envs_equal_environments_stepped_by_hand(make, factory):
    expected = HandWritten(factory, NUM_ENVS)
    envs = [make(factory, processes=processes) for processes in (0, 2)]
    # The first entry of a Toy's observation is where it runs.
    entries = slice(1, None) if factory.func is Toy else slice(None)
    space = envs[0].action_space
    space.seed(0)
    rng = np.random.default_rng(1)
    mask, ends = np.ones(NUM_ENVS, bool), 0
    for step in range(60):
        if mask.any():
            seeds = [
                int(seed) if seed % 3 or step == 0 else None for seed in rng.integers(1000, size=NUM_ENVS)
            ]
            wanted = expected.reset(seeds, mask)
            for env in envs:
                observations, info = env.reset(seed=seeds, options={"reset_mask": mask})
                np.testing.assert_array_equal(observations[:, entries], wanted[:, entries])
                assert info == {}
        actions = space.sample()
        wanted = expected.step(actions)
        for env in envs:
            observations, *flags, info = env.step(torch.from_numpy(actions))
            np.testing.assert_array_equal(observations[:, entries], wanted[0][:, entries])
            for got, flag in zip(flags, wanted[1:], strict=True):
                np.testing.assert_array_equal(got, flag)
            assert info == {}
        ended = wanted[2] | wanted[3]
        ends += ended.sum()
        mask = ended & (step % 3 == 0)  # ended envs are frozen for a while first
        if step == 30:
            mask = np.array([True, False, True, False])  # whether they have ended or not
    assert ends


@IN_EACH_PLACE
def test_spaces_and_tensors(make, processes):
    env = make(partial(gym.make, "CartPole-v1"), 3, processes=processes)
    single = gym.make("CartPole-v1")
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert env.observation_space.shape == (3, 4)
    assert env.action_space == spaces.MultiDiscrete([2, 2, 2])
    observations, _ = env.reset(seed=0)
    stepped, rewards, terminated, truncated, _ = env.step(torch.tensor([0, 1, 0]))
    assert observations.dtype == stepped.dtype == rewards.dtype == torch.float64
    assert terminated.dtype == truncated.dtype == torch.bool
    assert rewards.shape == terminated.shape == truncated.shape == (3,)


def test_an_int_seeds_env_i_with_seed_plus_i(make):
    observations, _ = make(Toy).reset(seed=5)
    expected, _ = make(Toy).reset(seed=[5, 6, 7, 8])
    assert torch.equal(observations, expected)
    assert len(observations[:, 1].unique()) == NUM_ENVS


@IN_EACH_PLACE
def test_an_environment_made_before_is_env_0_or_lends_its_spaces_to_processes(make, processes):
    first, closed = Toy(length=2), []
    first.close = lambda: closed.append(True)
    env = make(Toy, processes=processes, first=first)
    observations, _ = env.reset(seed=0)
    assert torch.equal(observations[:, 1:], make(Toy).reset(seed=0)[0][:, 1:])
    env.step(do(0, 0, 0, 0))
    *_, truncated, _ = env.step(do(0, 0, 0, 0))
    here = processes == 0
    assert truncated.tolist() == [here, False, False, False]
    assert first.steps == (2 if here else 0)
    assert closed == ([] if here else [True])
    env.close()
    assert closed == [True]


# --- only live envs are stepped ----------------------------------------------------------------------


@IN_EACH_PLACE
def test_only_live_envs_are_stepped(make, processes):
    env = make(partial(Toy, length=3), processes=processes)
    env.reset(seed=0, options=only(True, True, True, False))
    env.step(do(0, 0, 0, 0))
    env.retire(np.array([True, False, False, False]))
    for _ in range(4):
        observations, _, terminated, truncated, _ = env.step(do(0, 0, 0, 0))
    assert observations[:, 4].tolist() == [1, 3, 3, 0]
    assert terminated.tolist() == [True, False, False, True]
    assert truncated.tolist() == [False, True, True, False]
    env.reset(options=only(True, False, False, True))
    observations, rewards, terminated, truncated, _ = env.step(do(1, 1, 1, 1))
    assert observations[:, 4].tolist() == [2, 3, 3, 1]
    assert observations[:, 2].tolist() == [2, 1, 1, 1]  # episodes
    assert rewards.tolist() == [10, 0, 0, 10]
    assert (terminated | truncated).tolist() == [False, True, True, False]


@IN_EACH_PLACE
def test_a_reset_of_no_env_changes_nothing(make, processes):
    env = make(Toy, processes=processes)
    observations, _ = env.reset(seed=0)
    again, info = env.reset(seed=1, options=only(False, False, False, False))
    assert torch.equal(again, observations)
    assert info == {}


@IN_EACH_PLACE
def test_returned_tensors_are_not_overwritten_later(make, processes):
    env = make(partial(Toy, length=2), processes=processes)
    kept = [env.reset(seed=0)[0], *env.step(do(1, 2, 3, 4))[:4]]
    copies = [tensor.clone() for tensor in kept]
    env.step(do(5, 5, 5, 5))
    env.reset(seed=1)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))


def test_returned_tensors_may_be_written_to(make):
    env = make(partial(Toy, length=2))
    env.reset(seed=0)
    env.step(do(1, 1, 1, 1))
    env.reset(options=only(False, False, True, True))
    observations, _, terminated, truncated, _ = env.step(do(1, 1, 1, 1))
    shown = observations.clone()
    observations.fill_(7.0)
    terminated |= truncated
    truncated.logical_not_()
    observations, _ = env.reset(options=only(False, False, False, True))
    assert torch.equal(observations[:3], shown[:3])
    _, rewards, terminated, truncated, _ = env.step(do(1, 1, 1, 1))
    assert (rewards != 0).tolist() == [False, False, True, True]
    assert not terminated.any()
    assert truncated.tolist() == [True, True, True, False]


@pytest.mark.parametrize("shape", [(4,), (1, 1), (3, 1), (4, 2)])
def test_actions_of_a_wrong_shape_are_refused(make, shape):
    env = make(Toy)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be \(4, 1\), got"):
        env.step(torch.zeros(shape))


# --- environments that raise -------------------------------------------------------------------------


def assert_same_but(observations, expected, *broken):
    """All envs but the broken ones show what the undisturbed ones do."""
    sound = [i for i in range(NUM_ENVS) if i not in broken]
    assert torch.equal(observations[sound, 1:], expected[sound, 1:])


@IN_EACH_PLACE
def test_an_env_that_raises_in_a_step_fails_alone(make, processes):
    env, undisturbed = make(Toy, processes=processes), make(Toy)
    env.reset(seed=0)
    undisturbed.reset(seed=0)
    env.step(do(1, 2, 3, 4))
    undisturbed.step(do(1, 2, 3, 4))
    observations, rewards, terminated, truncated, info = env.step(do(1, RAISE, 3, 4))
    expected, *_ = undisturbed.step(do(1, 0, 3, 4))
    assert_same_but(observations, expected, 1)
    assert rewards.tolist() == [11, 0, 33, 44]
    assert terminated.tolist() == [False, True, False, False]
    assert not truncated.any()
    assert info["failed"].dtype == np.bool_
    assert info["failed"].tolist() == [False, True, False, False]
    assert info["failures"] == ["ValueError: told to, in episode 1"]
    # It is frozen, and told of once.
    frozen = observations[1]
    observations, rewards, terminated, _, info = env.step(do(1, RAISE, 3, 4))
    expected, *_ = undisturbed.step(do(1, 0, 3, 4))
    assert_same_but(observations, expected, 1)
    assert torch.equal(observations[1], frozen)
    assert rewards[1] == 0
    assert terminated.tolist() == [False, True, False, False]
    assert info == {}
    # At its next reset it is a new environment.
    observations, info = env.reset(seed=20, options=only(False, True, False, False))
    assert info == {}
    assert observations[1, 2:].tolist() == [1, 0, 0]
    assert_same_but(observations, expected, 1)
    observations, rewards, terminated, *_ = env.step(do(0, 5, 0, 0))
    assert observations[1, 2:].tolist() == [1, 1, 1]
    assert rewards.tolist() == [1, 50, 3, 4]
    assert not terminated.any()


@IN_EACH_PLACE
def test_a_failed_env_ends_like_a_terminated_one_after_an_episode_that_was_truncated(make, processes):
    env = make(partial(Toy, length=1), processes=processes)
    env.reset(seed=0)
    assert env.step(do(0, 0, 0, 0))[3].all()
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(do(0, RAISE, 0, 0))
    assert info["failed"].tolist() == [False, True, False, False]
    assert terminated.tolist() == [False, True, False, False]
    assert truncated.tolist() == [True, False, True, True]


@IN_EACH_PLACE
def test_an_env_that_raises_in_a_reset_fails_alone(make, processes):
    env, undisturbed = make(Toy, processes=processes), make(Toy)
    observations, info = env.reset(seed=[1, 2, RAISE, 4])
    expected, _ = undisturbed.reset(seed=[1, 2, 3, 4])
    assert info["failed"].tolist() == [False, False, True, False]
    assert info["failures"] == ["ValueError: told to, in episode 0"]
    assert_same_but(observations, expected, 2)
    observations, rewards, terminated, _, info = env.step(do(1, 2, 3, 4))
    expected, *_ = undisturbed.step(do(1, 2, 3, 4))
    assert_same_but(observations, expected, 2)
    assert rewards.tolist() == [10, 20, 0, 40]
    assert terminated.tolist() == [False, False, True, False]
    assert info == {}
    observations, info = env.reset(seed=[None, None, 3, None], options=only(False, False, True, False))
    assert info == {}
    assert observations[2, 1] == make(Toy).reset(seed=3)[0][0, 1]
    assert not env.step(do(1, 2, 3, 4))[2].any()


@IN_EACH_PLACE
def test_an_env_that_cannot_be_made_again_fails_until_it_can(make, processes, tmp_path):
    no_more = tmp_path / "no-more"
    env = make(partial(Toy, no_more), processes=processes)
    env.reset(seed=0)
    no_more.touch()
    env.step(do(0, 0, 0, RAISE))
    for _ in range(2):
        _, info = env.reset(seed=0, options=only(False, False, False, True))
        assert info["failed"].tolist() == [False, False, False, True]
        assert info["failures"] == ["RuntimeError: no more of these"]
        _, rewards, terminated, _, info = env.step(do(1, 1, 1, 1))
        assert terminated.tolist() == [False, False, False, True]
        assert rewards[3] == 0
        assert info == {}
    no_more.unlink()
    observations, info = env.reset(seed=0, options=only(False, False, False, True))
    assert info == {}
    assert observations[3, 2:].tolist() == [1, 0, 0]
    assert not env.step(do(1, 1, 1, 1))[2].any()


@IN_EACH_PLACE
def test_several_failed_envs_have_a_line_each_in_order(make, processes):
    env = make(Toy, processes=processes)
    env.reset(seed=0)
    env.reset(seed=0, options=only(False, False, False, True))
    *_, info = env.step(do(RAISE, 0, RAISE, RAISE))
    assert info["failed"].tolist() == [True, False, True, True]
    assert info["failures"] == [f"ValueError: told to, in episode {episode}" for episode in (1, 1, 2)]


# --- processes that die ------------------------------------------------------------------------------

DIED = "the worker process died (exit code -9)"


def pids(observations):
    return [int(pid) for pid in observations[:, 0].tolist()]


def test_envs_are_shared_out_over_processes(make):
    observations, _ = make(Toy, processes=2).reset(seed=0)
    first, other, *more = pids(observations)
    assert first == other
    assert more[0] == more[1]
    assert len({first, more[0], os.getpid()}) == 3


def test_there_are_no_more_processes_than_envs(make):
    observations, _ = make(Toy, 2, processes=5).reset(seed=0)
    assert len({*pids(observations), os.getpid()}) == 3


@pytest.mark.parametrize("when", ["between steps", "in a step"])
def test_a_process_that_dies_takes_its_own_live_envs_alone(make, when):
    env, undisturbed = make(Toy, processes=2), make(Toy)
    observations, _ = env.reset(seed=0)
    undisturbed.reset(seed=0)
    old = pids(observations)
    env.step(do(1, 1, 1, 1))
    undisturbed.step(do(1, 1, 1, 1))
    if when == "between steps":
        os.kill(old[0], signal.SIGKILL)
        wait_for_the_end_of(old[:1])
    observations, rewards, terminated, truncated, info = env.step(do(EXIT, 2, 3, 4))
    expected, *_ = undisturbed.step(do(0, 2, 3, 4))
    assert info["failed"].tolist() == [True, True, False, False]
    assert info["failures"] == [DIED, DIED]
    assert rewards.tolist() == [0, 0, 31, 41]
    assert terminated.tolist() == [True, True, False, False]
    assert not truncated.any()
    assert_same_but(observations, expected, 0, 1)
    _, rewards, terminated, _, info = env.step(do(1, 2, 3, 4))
    undisturbed.step(do(1, 2, 3, 4))
    assert info == {}
    assert rewards.tolist() == [0, 0, 33, 44]
    assert terminated.tolist() == [True, True, False, False]

    observations, info = env.reset(seed=[7, 8, None, None], options=only(True, True, False, False))
    assert info == {}
    assert observations[:2, 2:].tolist() == [[1, 0, 0]] * 2
    new = pids(observations)
    assert new[0] == new[1]
    assert new[0] not in (old[0], os.getpid())
    assert new[2:] == old[2:]
    fresh, _ = make(Toy).reset(seed=7)
    assert torch.equal(observations[:2, 1], fresh[:2, 1])
    observations, rewards, terminated, *_ = env.step(do(5, 6, 7, 8))
    expected, *_ = undisturbed.step(do(5, 6, 7, 8))
    assert_same_but(observations, expected, 0, 1)
    assert rewards.tolist() == [50, 60, 73, 84]
    assert not terminated.any()
    env.close()
    wait_for_the_end_of([*old, *new])


def test_a_process_that_dies_has_not_failed_envs_that_had_ended(make):
    env = make(Toy, processes=2)
    env.reset(seed=0)
    env.retire(np.array([True, False, False, False]))
    *_, info = env.step(do(0, EXIT, 0, 0))
    assert info["failed"].tolist() == [False, True, False, False]
    assert info["failures"] == [DIED]
    _, info = env.reset(seed=0, options=only(True, True, False, False))
    assert info == {}


def test_a_process_that_dies_in_a_reset_takes_its_live_envs(make):
    env = make(Toy, processes=2)
    env.reset(seed=0)
    env.step(do(1, 1, 1, 1))
    _, info = env.reset(seed=[0, 0, 0, EXIT], options=only(False, False, False, True))
    assert info["failed"].tolist() == [False, False, True, True]
    assert info["failures"] == [DIED, DIED]
    _, rewards, terminated, _, info = env.step(do(2, 2, 2, 2))
    assert rewards.tolist() == [21, 21, 0, 0]
    assert terminated.tolist() == [False, False, True, True]
    assert info == {}
    _, info = env.reset(seed=0, options=only(False, False, True, True))
    assert info == {}
    assert not env.step(do(3, 3, 3, 3))[2].any()


def test_both_processes_may_die_again_and_again(make):
    env = make(Toy, processes=2)
    seen = set()
    for _ in range(3):
        observations, info = env.reset(seed=0)
        assert info == {}
        seen |= set(pids(observations))
        *_, info = env.step(do(EXIT, 0, 0, EXIT))
        assert info["failures"] == [DIED] * 4
    assert len(seen) == 6
    env.close()
    wait_for_the_end_of(seen)


def test_a_process_that_died_and_cannot_be_replaced_is_no_dead_end(make, tmp_path):
    no_more = tmp_path / "no-more"
    env = make(partial(Toy, no_more), processes=2)
    env.reset(seed=0)
    no_more.touch()
    try:
        env.step(do(EXIT, 0, 3, 3))
    except RuntimeError as error:
        assert "no more of these" in str(error)  # noqa: PT017 - that it raises is no part of the contract
    no_more.unlink()
    _, info = env.reset(seed=0)
    if info:  # the envs without a process may fail once more
        assert info["failed"].tolist() == [True, True, False, False]
        _, info = env.reset(seed=0)
    assert info == {}
    observations, rewards, *_ = env.step(do(5, 6, 7, WAIT))  # whose answer is this?
    assert rewards.tolist() == [50, 60, 70, 10 * WAIT]
    assert observations[:, 3].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("sent", [None, signal.SIGKILL, signal.SIGSTOP])
def test_no_process_is_left_after_close(make, sent):
    env = make(Toy, processes=2)
    observations, _ = env.reset(seed=0)
    assert all(is_running(pid) for pid in pids(observations))
    if sent is not None:
        os.kill(pids(observations)[0], sent)
    env.close()
    wait_for_the_end_of(pids(observations))


# --- spaces that are refused -------------------------------------------------------------------------


BOX = spaces.Box(-1, 1, (2,))


class Spaces(gym.Env):
    """An environment of any spaces."""

    def __init__(self, observations=BOX, actions=BOX):
        self.observation_space, self.action_space = observations, actions


FILTER = r"env.wrappers \[{name: FilterObservation, filter_keys: \[a\]}\]"
TRANSFORM = "gymnasium.wrappers.TransformAction"


@IN_EACH_PLACE
@pytest.mark.parametrize(
    ("env", "kind", "wrapper"),
    [
        (Spaces(spaces.Dict(a=BOX, b=spaces.Text(5))), "no flat form of Text, the entry ..b", FILTER),
        (
            Spaces(spaces.Tuple([spaces.Sequence(BOX)])),
            "no flat form of Sequence",
            "out in a wrapper",
        ),
        (Spaces(spaces.Graph(BOX, None)), "no flat form of Graph observations", "Box in a wrapper"),
        (Spaces(actions=spaces.Dict(a=BOX)), "Dict actions", TRANSFORM),
        (Spaces(actions=spaces.Tuple([BOX])), "Tuple actions", TRANSFORM),
        (Spaces(actions=spaces.MultiBinary(3)), "MultiBinary actions", TRANSFORM),
        (Spaces(actions=spaces.Box(-1, 1, (2, 2))), "actions must be vectors", TRANSFORM),
        (Spaces(actions=spaces.MultiDiscrete([[2, 2]])), "actions must be vectors", TRANSFORM),
    ],
)
def test_spaces_that_no_policy_can_handle_are_refused(processes, env, kind, wrapper):
    with pytest.raises(ValueError, match=f"{kind}.*{wrapper}"):
        GymnasiumVectorEnv(lambda: env, 2, processes=processes)


def test_the_named_wrapper_helps(make):
    env = make(lambda: gym.wrappers.FlattenObservation(gym.make("FrozenLake-v1")), 2)
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, 16)
