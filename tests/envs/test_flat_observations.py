"""Observations with parts or categories: flattened as by FlattenObservation, alone and in batches."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

from es_flipout.envs import ForeignVectorEnv, GymnasiumVectorEnv, make_vec
from es_flipout.policies import FlatBox, flat_box

BOX = spaces.Box(-1, 1, (2, 3), np.float32)
NESTED = spaces.Dict(
    z=spaces.Discrete(3, start=-1),
    image=spaces.Box(0, 255, (2, 2, 1), np.uint8),
    arm=spaces.Tuple([BOX, spaces.MultiBinary([2, 2]), spaces.Dict(b=spaces.Box(-2.0, 2.0, ()))]),
    dials=spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 1], [2, 3]]),
)
LEAVES = st.sampled_from(
    [
        BOX,
        spaces.Box(0, 255, (4,), np.uint8),
        spaces.Box(-np.inf, np.inf, (1,), np.float64),
        spaces.Discrete(4),
        spaces.Discrete(2, start=7),
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 1, 3]),
    ]
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(spaces.Dict),
    ),
    max_leaves=5,
).filter(lambda space: not isinstance(space, spaces.Box))


class Shows(gym.Env):
    """Shows samples of a space, and is over after three steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = copy.deepcopy(space)  # which draws the samples

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps == 3, {}


def play(env):
    """Returns the observations of an episode of every env, float64 [T, N, ...]."""
    seen = [env.reset(seed=5)[0]]
    while len(seen) < 4:
        seen.append(env.step(torch.zeros(env.num_envs, dtype=torch.int64))[0])
    env.close()
    return torch.stack(seen)


@given(space=SPACES)
def test_the_numbers_are_those_of_flatten_observation(space):
    makers = [lambda: Shows(space), lambda: gym.wrappers.FlattenObservation(Shows(space))]
    ours, theirs = (GymnasiumVectorEnv(make, 2, dtype=torch.float64) for make in makers)
    assert ours.single_observation_space == theirs.single_observation_space
    assert torch.equal(play(ours), play(theirs))


def test_processes_flatten_too():
    here, there = (
        GymnasiumVectorEnv(lambda: Shows(NESTED), 3, dtype=torch.float64, processes=count) for count in (0, 2)
    )
    assert torch.equal(play(here), play(there))


@given(space=SPACES)
def test_batches_have_the_same_numbers(space):
    envs = SyncVectorEnv([lambda: Shows(space)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    batch = play(ForeignVectorEnv(envs, dtype=torch.float64))
    assert torch.equal(batch, play(GymnasiumVectorEnv(lambda: Shows(space), 2, dtype=torch.float64)))


def test_large_integers_do_not_lose_their_category():
    space = spaces.Tuple([spaces.Discrete(3, start=2**24)])  # float32 cannot tell 2**24 from 2**24 + 1
    envs = SyncVectorEnv([lambda: Shows(space)] * 8, autoreset_mode=AutoresetMode.DISABLED)
    assert torch.equal(play(ForeignVectorEnv(envs)), play(GymnasiumVectorEnv(lambda: Shows(space), 8)))


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Blackjack-v1", "Taxi-v4"])
def test_gymnasiums_own_need_no_wrapper(env_id):
    plain, wrapped = (make_vec(env_id, 2, wrappers=each) for each in ([], ["FlattenObservation"]))
    assert torch.equal(plain.reset(seed=1)[0], wrapped.reset(seed=1)[0])
    action = torch.ones(2, dtype=torch.int64)
    assert torch.equal(plain.step(action)[0], wrapped.step(action)[0])
    assert isinstance(plain.single_observation_space, FlatBox)
    assert not isinstance(wrapped.single_observation_space, FlatBox)


@given(space=SPACES)
def test_unflatten_gives_the_parts_back(space):
    flat = flat_box(space)
    rows = torch.arange(2.0 * flat.shape[0]).reshape(2, -1)
    numbers = []

    def visit(space, part):
        if isinstance(space, spaces.Dict):
            assert list(part) == list(space.spaces)
            for key, inner in space.spaces.items():
                visit(inner, part[key])
        elif isinstance(space, spaces.Tuple):
            assert isinstance(part, tuple)
            for inner, value in zip(space.spaces, part, strict=True):
                visit(inner, value)
        else:
            shape = (spaces.flatdim(space),) if hasattr(space, "start") else space.shape
            assert part.shape == (2, *shape)
            numbers.append(part.reshape(2, -1))

    visit(space, flat.unflatten(rows))
    assert torch.equal(torch.cat(numbers, dim=1), rows)


def test_the_short_name_has_no_bounds():
    assert flat_box(NESTED).short_name == "Dict(z, image, arm, dials)"
    assert flat_box(spaces.Tuple([BOX, spaces.Discrete(3)])).short_name == "Tuple(Box(2, 3), Discrete(3))"


@pytest.mark.parametrize("space", [spaces.Dict(), spaces.Tuple([]), spaces.Dict(arm=spaces.Dict())])
def test_observations_without_parts_are_refused(space):
    with pytest.raises(ValueError, match="observations have no parts"):
        flat_box(space)


PLACE = spaces.Box(-1, 1, (2,), np.float32)
PARTS = spaces.Dict(place=PLACE, kind=spaces.Discrete(3), pair=spaces.Tuple([PLACE, spaces.Discrete(2)]))
GOOD = {"place": np.zeros(2, np.float32), "kind": 1, "pair": (np.zeros(2, np.float32), 0)}
FAULTS = [
    (
        {"place": np.zeros(3, np.float32)},
        "an observation['place'] of shape {0}, but observation_space",
    ),
    ({"kind": 3}, "an observation['kind'] outside of Discrete(3), which is declared: {1}"),
    ({"kind": 0.5}, "an observation['kind'] of floats, but observation_space declares int64"),
    ({"kind": None}, "an observation['kind'] that is not an array of numbers"),
    ({"pair": (GOOD["pair"][0],)}, "an observation['pair'] without the entry [1]"),
    ({"pair": None}, "an observation['pair'] without the entry [0] that observation_space declares: None"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_part_that_is_not_as_declared_is_a_fault(change, message):
    class Wrong(Shows):
        def reset(self, *, seed=None, options=None):
            return {**GOOD, **change}, {}

    env = GymnasiumVectorEnv(lambda: Wrong(PARTS), 1)
    _, info = env.reset(seed=0)
    assert message.format("(3,)", "3") in info["failures"][0]


def test_an_array_that_is_flat_already_is_a_fault():
    class Flat(Shows):
        def step(self, action):
            return np.zeros(9, np.float64), 1.0, False, False, {}

    env = GymnasiumVectorEnv(lambda: Flat(PARTS), 1)
    assert env.single_observation_space.shape == (9,)
    env.reset(seed=0)
    *_, info = env.step(torch.zeros(1, dtype=torch.int64))
    assert "step returned an observation without the entry ['place']" in info["failures"][0]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_part_of_a_batch_that_is_not_as_declared_is_refused(change, message):
    def stacked(value):
        return tuple(map(stacked, value)) if isinstance(value, tuple) else np.stack([value] * 2)

    class Wrong(SyncVectorEnv):
        def reset(self, *, seed=None, options=None):
            return {key: stacked(value) for key, value in {**GOOD, **change}.items()}, {}

    env = Wrong([lambda: Shows(PARTS)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is looked at below
        ForeignVectorEnv(env).reset(seed=0)
    text = str(raised.value).replace("array(None", "None")
    if change != {"pair": None}:
        assert message.format("(2, 3)", "a NumPy array of shape (2,) and dtype int64") in text
