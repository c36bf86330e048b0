"""Entries of info as metrics of a score: what they are, from every environment that has them."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from decimal import Decimal
from functools import partial

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout import LinearPolicy, Scorer, make_vec
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.rollout.score_info import InfoMetric, entries_of, parse_all
from es_flipout.run.build import native_scorer, official_scorer
from es_flipout.run.config import EnvConfig

# Other processes cannot import this module, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

INFO = ["x", "mean:x", "max:x", "success", "sometimes", "mean:sometimes", "max:absent", "count"]


class Told(gym.Env):
    """An episode of `seed` steps; those of seeds of 4 and more succeed, and 5 raises in its second step."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        return np.zeros(1, np.float32), {"absent": 7.0}

    def step(self, action):
        self.steps += 1
        if self.seed == 5 and self.steps == 2:
            raise RuntimeError("lost")
        ended = self.steps == self.seed
        info = {"x": 10.0 * self.seed + self.steps, "count": self.count(), "other": "text"}
        if ended:
            info["success"] = self.seed >= 4
        if self.steps == 1:
            info["sometimes"] = torch.tensor([2.5])
        return np.zeros(1, np.float32), 1.0, ended, False, info

    def count(self):
        return [3, np.float32(3), np.array(3), np.array([3]), Decimal(3), None][self.steps % 6]


def score(env, info, seed, **options):
    policy = LinearPolicy(env.single_observation_space, env.single_action_space)
    with closing(Scorer(env, info=info)) as scorer:
        return scorer.score(policy, seed=seed, **options)


@pytest.mark.parametrize("processes", [0, 2])
def test_metrics_are_of_the_last_step_and_of_all_steps(processes):
    env = GymnasiumVectorEnv(Told, 4, processes=processes, info=entries_of(INFO))
    episodes = score(env, INFO, seed=2)  # 2 to 5 steps, the last of which fails
    expected = {
        "x": [22, 33, 44],
        "mean:x": [21.5, 32, 42.5],
        "max:x": [22, 33, 44],
        "success": [0, 0, 1],
        "sometimes": [math.nan] * 3,  # not there at the end
        "mean:sometimes": [2.5, 2.5, 2.5],
        "max:absent": [math.nan] * 3,  # only after a reset
        "count": [3, 3, 3],
    }
    assert list(episodes.info) == INFO
    for name, values in expected.items():
        assert np.array_equal(episodes.info[name], [*values, math.nan], equal_nan=True), name
    assert list(episodes.faults) == [3]
    means = episodes.info_means
    assert (means["x"], means["success"], means["mean:sometimes"]) == (33, 1 / 3, 2.5)
    assert math.isnan(means["sometimes"])
    assert math.isnan(means["max:absent"])


def test_an_entry_that_is_no_number_fails_its_episode():
    episodes = score(GymnasiumVectorEnv(Told, 2, info=["x", "other"]), ["x"], seed=1)
    assert episodes.faults == dict.fromkeys([0, 1], "the info entry 'other' is 'text', a number is needed")


@pytest.mark.parametrize(
    ("env_id", "kwargs", "info"),
    [
        ("Ant-v5", {"max_episode_steps": 30}, ["x_velocity", "mean:reward_contact", "max:y_position"]),
        ("HalfCheetah-v5", {"max_episode_steps": 20}, ["x_position", "mean:x_velocity", "max:reward_ctrl"]),
        ("Hopper-v5", {}, ["mean:reward_survive", "max:z_distance_from_origin", "x_position"]),
        (
            "examples.point_mass:PointMass-v0",
            {"max_episode_steps": 15},
            ["mean:reward_near", "reward_effort"],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_native_envs_give_those_of_the_official_environment_to_the_last_bit(env_id, kwargs, info):
    config = EnvConfig(env_id, kwargs)
    found = []
    for make in (official_scorer, native_scorer):
        with closing(make(config, 3, info=info)) as scorer:
            generator = torch.Generator().manual_seed(0)
            policy = LinearPolicy(scorer.observation_space, scorer.action_space, generator=generator)
            found.append(scorer.score(policy, seed=70))
    official, native = found
    assert official.returns.tolist() == native.returns.tolist()
    for name in info:
        assert np.array_equal(official.info[name], native.info[name], equal_nan=True)
    assert np.isfinite(list(official.info.values())).all()


def test_make_vec_keeps_the_entries_that_are_named():
    env = make_vec("Hopper-v5", 2, engine="gymnasium", info=["x_velocity", "nothing"])
    env.reset(seed=0)
    *_, info = env.step(torch.zeros(2, 3))
    assert list(info) == ["x_velocity", "nothing"]
    assert info["x_velocity"].isfinite().all()
    assert info["nothing"].isnan().all()
    env.close()


def test_several_numbers_are_refused():
    env = make_vec("Hopper-v5", 2)
    step = env.step

    def wide(actions):
        *results, info = step(actions)
        return *results, info | {"wide": torch.zeros(2, 3)}

    env.step = wide
    with pytest.raises(ValueError, match=r"^the info entry 'wide' has shape \[3\] in each env"):
        score(env, ["wide"], seed=0)


def test_names():
    assert InfoMetric.parse("a:b") == InfoMetric("a:b", "last", "a:b")
    assert InfoMetric.parse("mean:a:b") == InfoMetric("mean:a:b", "mean", "a:b")
    assert entries_of(["max:x", "y", "x"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", ""], r"^'' names no entry of info: give NAME, mean:NAME or max:NAME"),
        (["mean:"], r"^'mean:' names no entry of info"),
        (["failed"], r"where NAME is none of failed, failures, started$"),
        (["x", "max:x", "x"], r"^'x' is there twice$"),
    ],
)
def test_names_that_mean_nothing_are_refused(names, message):
    for check in (parse_all, partial(score, make_vec("Hopper-v5", 1), seed=0)):
        with pytest.raises(ValueError, match=message):
            check(names) if check is parse_all else check(info=names)
