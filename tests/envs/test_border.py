"""The border to a user's environment: exactly what a plain loop over it gives, or a fault in one line."""

from __future__ import annotations

import sys
from decimal import Decimal
from fractions import Fraction

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from es_flipout.envs import GymnasiumVectorEnv
from es_flipout.envs.guarded_env import GuardedEnv
from es_flipout.envs.values import EnvFault
from es_flipout.rollout import Episodes, GymnasiumRollout

# Other processes cannot import this module, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 3

# --- what an environment may return, and what it must not -----------------------------------------------

GOOD_REWARDS = {
    "float": float,
    "int": lambda x: int(x),
    "bool": lambda x: x > 0,
    "fraction": lambda x: Fraction(int(x), 3),
    "decimal": lambda x: Decimal(str(x)),
    "float32": np.float32,
    "float64": np.float64,
    "int64": lambda x: np.int64(x),
    "bool_": lambda x: np.bool_(x > 0),
    "0-d": np.array,
    "one": lambda x: np.array([x], np.float32),
    "one by one": lambda x: np.array([[x]]),
    "scalar tensor": torch.tensor,
    "tensor of one": lambda x: torch.tensor([x], requires_grad=True),
    "list of one": lambda x: [x],
}
BAD_REWARDS = {
    "None": lambda x: None,
    "text": str,
    "two": lambda x: np.array([x, x]),
    "none at all": lambda x: np.zeros(0),
    "two in a tensor": lambda x: torch.tensor([x, x]),
    "two in a list": lambda x: [x, x],
    "ragged": lambda x: [x, [x]],
    "complex": complex,
    "complex128": np.complex128,
    "complex tensor": lambda x: torch.tensor(complex(x)),
    "object": lambda x: np.array([None]),
    "dict": lambda x: {"reward": x},
    "too large": lambda x: 10**400,
    "date": lambda x: np.datetime64(int(x), "s"),
}
GOOD_FLAGS = {
    "bool": bool,
    "bool_": np.bool_,
    "int": int,
    "int8": np.int8,
    "0-d": np.array,
    "one": lambda x: np.array([x]),
    "tensor": torch.tensor,
    "uint8 tensor": lambda x: torch.tensor([x], dtype=torch.uint8),
}
BAD_FLAGS = {
    "None": lambda x: None,
    "float": lambda x: 0.3,
    "whole float": float,
    "two": lambda x: 2,
    "minus one": lambda x: -1,
    "text": str,
    "array": lambda x: np.array([x, x]),
    "dict": lambda x: {},
}
GOOD_OBSERVATIONS = {
    "as declared": lambda x: x,
    "list": lambda x: x.tolist(),
    "tensor": lambda x: torch.tensor(
        x.tolist(), dtype={"f": torch.float64, "b": torch.bool}.get(x.dtype.kind, torch.int64)
    ),
    "strided": lambda x: np.repeat(x[..., np.newaxis], 2, axis=-1)[..., 0],
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "wider": lambda x: x.astype({"f": np.float64, "i": np.int64, "u": np.uint64, "b": np.int8}[x.dtype.kind]),
}
BAD_OBSERVATIONS = {
    "one more": lambda x: np.append(x, x.dtype.type(0)),
    "a row of it": lambda x: x[np.newaxis],
    "None": lambda x: None,
    "text": lambda x: x.astype(str),
    "objects": lambda x: np.full(x.shape, None),
    "complex": lambda x: x.astype(complex),
    "dict": lambda x: {"observation": x},
    "ragged": lambda x: [[1.0], [2.0, 3.0]],
}
BAD_FOR_INTEGERS = {
    "floats": lambda x: x.astype(np.float64),
    "0.7": lambda x: np.full(x.shape, 0.7),
    "out of range": lambda x: np.full(x.shape, 2**63, np.uint64),
}


class Random(gym.Env):
    """Walks through given observations and rewards, which it returns in given ways.

    One that `starts_well` returns its first observation as it should; one that `reuses` returns one array,
    which it overwrites.
    """

    def __init__(self, space, observations, rewards, ways, reuses, starts_well):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.observations, self.rewards = observations, rewards
        self.ways, self.reuses, self.starts_well = ways, reuses, starts_well
        self.show, self.pay, self.end = ways

    def reset(self, *, seed=None, options=None):
        self.time, self.memory = 0, None
        return self.observations[0] if self.starts_well else self.observe(), {}

    def observe(self):
        shown = self.show(self.observations[self.time])
        if self.reuses and isinstance(shown, np.ndarray):  # one array for all observations
            if self.memory is None:
                self.memory = np.empty_like(shown)
            self.memory[...] = shown
            return self.memory
        return shown

    def step(self, action):
        self.time += 1
        over = self.time == STEPS
        return self.observe(), self.pay(self.rewards[self.time - 1]), self.end(over), self.end(False), {}


def box(shape, dtype):
    limits = (0, 1) if dtype == np.bool_ else (0, 100)
    low, high = (np.full(shape, limit, dtype) for limit in limits)
    return spaces.Box(low, high, shape, dtype)


DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_]


GOOD = [GOOD_OBSERVATIONS, GOOD_REWARDS, GOOD_FLAGS]
BAD = [BAD_OBSERVATIONS | BAD_FOR_INTEGERS, BAD_REWARDS, BAD_FLAGS]
WAYS = [(part, name) for part in range(3) for name in [*GOOD[part], *BAD[part]]]
BY_WAY = pytest.mark.parametrize(("part", "way"), WAYS, ids=[f"{'opf'[part]} {name}" for part, name in WAYS])


@st.composite
def random_envs(draw, part, way):
    """Draws an environment that returns observations, rewards or flags (0, 1, 2) in a given way."""
    is_for_integers = part == 0 and way in BAD_FOR_INTEGERS
    dtype = np.dtype(draw(st.sampled_from(DTYPES[3:] if is_for_integers else DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, max_side=3))
    numbers = st.integers(0, 1 if dtype.kind == "b" else 100)
    observations = draw(npst.arrays(np.int64, (STEPS + 1, *shape), elements=numbers)).astype(dtype)
    if dtype.kind == "f":
        observations /= dtype.type(8)
    rewards = draw(st.lists(st.integers(-40, 40).map(lambda x: x / 4), min_size=STEPS, max_size=STEPS))
    ways = [draw(st.sampled_from(list(good.values()))) for good in GOOD]
    ways[part] = (GOOD[part] | BAD[part])[way]
    flags = draw(st.booleans()), draw(st.booleans())
    return Random(box(shape, dtype), observations, rewards, tuple(ways), *flags)


def assert_one_line(text):
    assert text == " ".join(text.split())
    assert 10 < len(text) < 300


def check_played(env, is_sound, played):
    """Compares what a vector environment of two envs showed with a plain loop over a single one."""
    observations, rewards, ends, faults = played
    if not is_sound:
        assert len(faults) == 2
        for text in faults:
            assert_one_line(text)
        return
    assert faults == []
    for step in range(STEPS + 1):
        wanted = env.observations[step].astype(np.float64)
        np.testing.assert_array_equal(observations[step], np.stack([wanted, wanted]))
    for step in range(STEPS):
        assert rewards[step].tolist() == [as_float(env.pay(env.rewards[step]))] * 2
        assert ends[step] == [step == STEPS - 1] * 2


def as_float(reward):
    return float(np.asarray(reward.detach() if isinstance(reward, torch.Tensor) else reward).flat[0])


def play(env, processes):
    envs = GymnasiumVectorEnv(lambda: copy_of(env), 2, dtype=torch.float64, processes=processes)
    try:
        shown, info = envs.reset(seed=0)
        observations, rewards, ends, faults = [shown], [], [], list(info.get("failures", []))
        for _ in range(STEPS):
            shown, paid, terminated, truncated, info = envs.step(torch.zeros(2, dtype=torch.int64))
            observations.append(shown)
            rewards.append(paid)
            ends.append((terminated | truncated).tolist())
            faults += info.get("failures", [])
        return observations, rewards, ends, faults
    finally:
        envs.close()


def copy_of(env):
    return Random(env.observation_space, env.observations, env.rewards, env.ways, env.reuses, env.starts_well)


@BY_WAY
@settings(max_examples=4)
@given(data=st.data())
def test_exactly_what_a_plain_loop_gives_or_a_fault_in_one_line(part, way, data):
    env = data.draw(random_envs(part, way))
    check_played(env, way in GOOD[part], play(env, 0))


@pytest.mark.parametrize(("part", "way"), [(0, "wider"), (1, "tensor of one"), (2, "float")])
@settings(max_examples=1)
@given(data=st.data())
def test_the_same_in_another_process(part, way, data):
    env = data.draw(random_envs(part, way))
    check_played(env, way in GOOD[part], play(env, 1))


@BY_WAY
@settings(max_examples=2)
@given(data=st.data())
def test_the_same_for_the_baseline(part, way, data):
    env = data.draw(random_envs(part, way))
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            seen.append(x[0].numpy().copy())
            return torch.zeros(1, dtype=torch.int64)

    episodes = Episodes(np.zeros(1, np.int64), np.zeros(1, np.int64))
    rollout = GymnasiumRollout(lambda: copy_of(env))
    episodes.observation_size = rollout.observation_size
    with torch.no_grad():
        rollout.play(Watching(), episodes, 0)
    if way in BAD[part]:
        (text,) = episodes.faults.values()
        assert_one_line(text)
        return
    assert episodes.faults == {}
    wanted = [env.pay(x) for x in env.rewards]
    assert episodes.returns[0] == sum(as_float(x) for x in wanted)
    np.testing.assert_array_equal(np.stack(seen), env.observations[:STEPS].astype(np.float64))


# --- the messages -------------------------------------------------------------------------------------


class Returns(gym.Env):
    """Returns what it is told to."""

    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, reset=None, step=None):
        self.of_reset, self.of_step = reset, step

    def reset(self, *, seed=None, options=None):
        return (np.zeros(3, np.float32), {}) if self.of_reset is None else self.of_reset

    def step(self, action):
        if isinstance(self.of_step, BaseException):
            raise self.of_step
        return self.of_step


def step_of(observation=None, reward=0.0, terminated=False, truncated=False, info=None):
    observation = np.zeros(3, np.float32) if observation is None else observation
    return observation, reward, terminated, truncated, {} if info is None else info


OLD = "this is the API before Gymnasium 0.26"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"reset": np.zeros(3, np.float32)}, OLD),
        ({"reset": (0.1, 0.2)}, OLD),
        ({"reset": (np.zeros(2), {})}, "reset returned an observation of shape (2,), but observation_space"),
        ({"step": step_of()[:4]}, OLD),
        ({"step": step_of()[:4]}, "step returned a tuple of 4 values"),
        ({"step": None}, "step returned None, but must return (observation, reward, terminated"),
        ({"step": step_of(reward=None)}, "the reward is None, a number is needed"),
        ({"step": step_of(reward=np.ones(2))}, "the reward is an array of shape (2,), a number is needed"),
        (
            {"step": step_of(reward=np.ones(2))},
            "set env.reward_weights (reward_weights in Python) to 2 weights",
        ),
        ({"step": step_of(reward="1" * 90)}, "... (str), a number is needed"),
        ({"step": step_of(reward=10**400)}, "OverflowError: int too large"),
        ({"step": step_of(terminated=0.3)}, "terminated is 0.3, a bool is needed"),
        ({"step": step_of(truncated=None)}, "truncated is None, a bool is needed"),
        ({"step": step_of(info=[1])}, "step returned a list of 1 value (1) as its info, a dict is needed"),
        (
            {"step": step_of(observation=np.zeros((1, 3), np.float32))},
            "shape (1, 3), but observation_space declares (3,)",
        ),
        ({"step": step_of(observation="left")}, "not an array of numbers but 'left'"),
        ({"step": KeyError("gripper")}, "KeyError: 'gripper'"),
        ({"step": NotImplementedError()}, "NotImplementedError"),
        ({"step": SystemExit("window closed")}, "SystemExit: window closed"),
    ],
)
def test_a_fault_says_what_came_and_what_is_needed(returned, message):
    env = GymnasiumVectorEnv(lambda: Returns(**returned), 1)
    _, info = env.reset(seed=0)
    if "step" in returned:
        *_, info = env.step(torch.zeros(1, dtype=torch.int64))
    (fault,) = info["failures"]
    assert message in fault


class WithoutSeed(Returns):
    def reset(self):
        return np.zeros(3, np.float32), {}


class WithoutOptions(Returns):
    def reset(self, seed=None):
        return np.zeros(3, np.float32), {}


@pytest.mark.parametrize("kind", [WithoutSeed, WithoutOptions])
def test_a_reset_without_a_seed_or_options_is_named(kind):
    env = GuardedEnv(lambda: gym.wrappers.TimeLimit(kind(), 5))
    with pytest.raises(EnvFault, match=r"declare reset\(self, \*, seed=None, options=None\)"):
        env.reset(0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float64(np.nan)])
def test_what_is_not_finite_is_let_through(value):
    env = GuardedEnv(lambda: Returns(step=step_of(np.full(3, value), value)))
    env.reset(0)
    observation, reward, *_ = env.step(0)
    np.testing.assert_array_equal([reward, *observation], [value] * 4)


def test_a_float_beyond_a_narrower_dtype_becomes_infinite_without_a_warning():
    env = GuardedEnv(lambda: Returns(step=step_of([1e300, 0, -1e300])))
    env.reset(0)
    assert env.step(0)[0].tolist() == [np.inf, 0, -np.inf]


def test_an_info_that_is_none_is_an_empty_one():
    env = GuardedEnv(lambda: Returns(reset=(np.zeros(3), None)))
    assert env.reset(0)[1] == {}


@pytest.mark.parametrize("entry", [True, 0, "the cube was dropped"])
def test_what_others_call_a_failure_is_none(entry):
    env = GuardedEnv(lambda: Returns((np.zeros(3), {"failure": entry}), step_of(info={"failure": entry})))
    assert env.reset(0)[1] == env.step(0)[4] == {"failure": entry}


def test_an_environment_with_a_fault_is_closed_and_replaced():
    made = []

    def make():
        made.append(Returns(step=RuntimeError("stuck") if not made else step_of()))
        made[-1].close = lambda: closed.append(made[-1])
        return made[-1]

    closed = []
    env = GuardedEnv(make)
    env.reset(0)
    with pytest.raises(EnvFault, match="RuntimeError: stuck"):
        env.step(0)
    assert closed == made[:1]
    env.reset(0)
    assert env.step(0)[1] == 0.0
    assert len(made) == 2


@pytest.mark.parametrize("error", [RuntimeError("lost the robot"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("processes", [0, 1])
def test_what_raises_when_it_is_closed_does_no_harm(error, processes):
    env = GymnasiumVectorEnv(lambda: Stubborn(error), 2, processes=processes)
    env.reset(seed=0)
    *_, info = env.step(torch.zeros(2, dtype=torch.int64))
    env.close()
    assert info["failures"] == ["ValueError: stuck"] * 2


class Stubborn(Returns):
    def __init__(self, error):
        super().__init__(step=ValueError("stuck"))
        self.error = error

    def close(self):
        raise self.error


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_an_environment_without_spaces_is_refused(name):
    env = Returns()
    setattr(env, name, None)
    with pytest.raises(ValueError, match=f"its {name} is None, a gymnasium.Space is needed"):
        GymnasiumVectorEnv(lambda: env, 1)


@pytest.mark.parametrize("actions", [torch.zeros(2), np.zeros(2), torch.zeros(2, dtype=torch.complex64)])
def test_float_actions_for_integers_are_refused(actions):
    env = GymnasiumVectorEnv(lambda: Returns(step=step_of()), 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be torch.int64.*got torch"):
        env.step(actions)
