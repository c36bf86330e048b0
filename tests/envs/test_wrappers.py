"""Wrappers by name, with their arguments: what they do, and what a mistake is answered with."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import make_env, make_vec, runs_natively

STACK = {"name": "FrameStackObservation", "stack_size": 4}


def test_arguments_reach_the_wrapper_as_in_python():
    ours = make_env("Pendulum-v1", [STACK, {"name": "RescaleAction", "min_action": -1, "max_action": 1}])
    theirs = gym.wrappers.RescaleAction(
        gym.wrappers.FrameStackObservation(gym.make("Pendulum-v1"), stack_size=4), -1, 1
    )
    for env in (ours, theirs):
        env.reset(seed=3)
    for _ in range(6):
        mine, other = (env.step(np.full(1, 0.5, np.float32)) for env in (ours, theirs))
        np.testing.assert_array_equal(mine[0], other[0])
        assert mine[0].shape == (4, 3)
        assert mine[1] == other[1]


@pytest.mark.parametrize("engine", ["gymnasium", "gymnasium_processes"])
def test_vector_environments_wrap_with_arguments(engine):
    env = make_vec("InvertedPendulum-v5", 2, engine=engine, threads=2, wrappers=[STACK, "FlattenObservation"])
    assert env.reset(seed=0)[0].shape == (2, 16)
    env.close()
    assert not runs_natively("InvertedPendulum-v5", "auto", [STACK])


class Lists(gym.Wrapper):
    """Keeps what it was given; as annotated, a tuple, an array and a list."""

    def __init__(self, env, size: tuple[int, int], low: float | np.ndarray, names: list[str]):
        super().__init__(env)
        self.given = size, low, names


def test_a_list_becomes_what_the_wrapper_is_annotated_to_take():
    name = f"{__name__}:Lists"
    sys.modules.setdefault(__name__, sys.modules[Lists.__module__])
    wrapper = {"name": name, "size": [8, 9], "low": [1.0, 2.0], "names": ["a"]}
    size, low, names = make_env("CartPole-v1", [wrapper]).given
    assert size == (8, 9)
    assert isinstance(low, np.ndarray)
    assert names == ["a"]


@pytest.mark.parametrize("make", [make_env, lambda env_id, wrappers: make_vec(env_id, 1, wrappers=wrappers)])
@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ({"stack_size": 4}, r"wrapper {'stack_size': 4} needs a name, as in {name: FrameStackObservation"),
        ({"name": 3}, r"wrapper {'name': 3} needs a name"),
        ({"name": "FlattenObservation", 3: 4}, "keyword arguments have names, got 3"),
        (7, r"a name or a mapping like {name: FrameStackObservation, stack_size: 4}, got 7"),
        ({"name": "Nonesuch", "size": 3}, "wrapper 'Nonesuch' does not exist"),
        ({"name": "NormalizeReward", "gamma": 0.9}, "wrapper 'NormalizeReward' keeps statistics"),
        (
            {"name": "FrameStackObservation", "stack": 4},
            "wrapper FrameStackObservation: missing a required argument: 'stack_size'; it takes stack_size",
        ),
        (
            {"name": "FrameStackObservation", "stack_size": 4, "pad": 1},
            r"unexpected keyword argument 'pad'; it takes stack_size, padding_type='reset'",
        ),
        ("RescaleAction", "wrapper RescaleAction: missing a required argument: 'min_action'"),
        ({"name": "FlattenObservation", "size": 3}, "'size'; it takes no arguments"),
    ],
)
def test_a_mistake_is_told_in_one_line(make, wrapper, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is looked at below
        make("CartPole-v1", [wrapper])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrappers", ["FlattenObservation", STACK])
def test_wrappers_are_a_list(wrappers):
    with pytest.raises(ValueError, match=r"^wrappers must be a list, like \[{name: FrameStackObservation"):
        make_env("CartPole-v1", wrappers)


def test_what_a_wrapper_makes_of_its_arguments_is_named_with_it():
    with pytest.raises(ValueError, match=r"^CartPole-v1: \w+ \(in FrameStackObservation\): .*-1"):
        make_env("CartPole-v1", [{"name": "FrameStackObservation", "stack_size": -1}])


def test_pixels_are_observations():
    view = {"render_mode": "rgb_array", "width": 32, "height": 24}
    wrappers = ["AddRenderObservation", {"name": "GrayscaleObservation", "keep_dim": True}]
    env = make_vec("InvertedPendulum-v5", 2, wrappers=wrappers, **view)
    images, _ = env.reset(seed=0)
    assert images.shape == (2, 24, 32, 1)
    assert images.std() > 0
    moved, *_ = env.step(torch.full((2, 1), 3.0))
    assert not torch.equal(images, moved)
    env.close()
