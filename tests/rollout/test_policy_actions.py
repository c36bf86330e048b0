"""PolicyActions: what a policy returns reaches the environment unchanged, or is refused."""

from __future__ import annotations

import re
import sys
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.perturbations import Flipout
from es_flipout.population import NoiseOrigin, Population
from es_flipout.rollout import BaselinePlayer, Episodes, GymnasiumRollout, HostPlayer, PlayError
from es_flipout.rollout.policy_actions import PolicyActions

SPACES = {
    "floats": spaces.Box(-1.0, 1.0, (2,)),
    "doubles": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "integers": spaces.Box(-1, 1, (2,), np.int64),
    "bools": spaces.Box(0, 1, (2,), np.bool_),
    "discrete": spaces.Discrete(2),
    "several": spaces.MultiDiscrete([2, 2]),
}
DTYPES = [torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64]


class Recorder(gym.Env):
    """Keeps the actions that it was given; episodes of one step."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    seen: ClassVar[list[object]] = []

    def __init__(self, space: gym.Space) -> None:
        self.action_space = space

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Recorder.seen.append(action)
        return np.zeros(2, np.float32), 1.0, True, False, {}


class Returns(nn.Module):
    """Returns what it was told to, whatever it observes."""

    def __init__(self, value) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.value = value

    row_wise = True

    def forward(self, observations):
        value = self.value
        return value.expand(len(observations), *value.shape[1:]) if isinstance(value, torch.Tensor) else value


def population_of(policy: nn.Module) -> Population:
    origin = NoiseOrigin(Flipout(), 2, True, 0, 0, 0)
    return Population(policy, origin.draw(policy), 0.1, origin)


@given(
    space=st.sampled_from(list(SPACES)),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (1,), (2,), (2, 1)]),
)
def test_an_action_arrives_as_it_was_meant_or_is_refused(space, dtype, shape):
    action_space = SPACES[space]
    value = torch.ones(1, *shape).to(dtype)
    env = GymnasiumVectorEnv(lambda: Recorder(action_space), 2)
    Recorder.seen.clear()
    fits = shape == action_space.shape and dtype.is_floating_point == (space in ("floats", "doubles"))
    fits = fits and not dtype.is_complex
    episodes = Episodes.of_population([1, 2])
    player = HostPlayer(env)
    if fits:
        player.play(population_of(Returns(value)), episodes)
        assert not episodes.faults
        assert len(Recorder.seen) == 2
        for action in Recorder.seen:
            assert np.all(np.asarray(action) == 1)
            assert action in action_space
    else:
        with pytest.raises(PlayError, match="policy Returns cannot act: TypeError: it must return"):
            player.play(population_of(Returns(value)), episodes)
        assert not Recorder.seen
    player.close()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (0.5, "0.5"),
        ([0.5, 0.5], "a list of 2 values (0.5, 0.5)"),
        (np.zeros(2), "a NumPy array of shape (2,) and dtype float64"),
    ],
)
def test_what_is_no_tensor_is_refused(value, text):
    actions = PolicyActions(Returns(value), SPACES["floats"])
    with pytest.raises(PlayError, match=re.escape(f"but returns {text}")):
        actions.run(lambda: value, 2)


def test_the_baseline_does_not_cut_off_actions_either():
    policy = Returns(torch.full((1, 2), 0.7))
    player = BaselinePlayer(
        policy, lambda: GymnasiumRollout(lambda: Recorder(SPACES["integers"])), num_workers=1
    )
    try:
        with pytest.raises(PlayError, match=r"integers \[1, 2\] for 1 .* returns a tensor of .* float32"):
            player.play(population_of(policy), Episodes.of_population([1, 2]))
    finally:
        player.close()


def test_a_policy_that_exits_is_named():
    actions = PolicyActions(Returns(None), SPACES["floats"])
    with pytest.raises(PlayError, match=r"^policy Returns cannot act: SystemExit: no display$"):
        actions.run(lambda: sys.exit("no display"), 2)
