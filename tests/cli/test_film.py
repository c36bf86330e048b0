"""Film: a frame before every action of the first episode of a score, and no effect on it."""

from __future__ import annotations

from contextlib import closing

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from es_flipout.cli.eval import Film
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import MLPPolicy
from es_flipout.rollout import Scorer
from es_flipout.run.build import official_maker
from es_flipout.run.config import EnvConfig

SEED = 70


def make_env(env_id, kwargs):
    with deprecations_silenced():
        return gym.make(env_id, **kwargs)


def policy_for(env):
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=(8,), generator=generator)
    with torch.no_grad():
        policy.network[-1].weight.mul_(50.0)  # a new policy hardly acts
    return policy


def filmed(kwargs, policy, folder):
    """Returns the score of two episodes of HalfCheetah, and the frames of the first."""
    make = official_maker(EnvConfig("HalfCheetah-v5", kwargs))
    film = Film(make(render_mode="rgb_array"))
    with closing(Scorer(make, 2, first=film)) as scorer, film.into(folder / "film.gif"):
        score = scorer.score(policy, seed=SEED)
    return score, imageio.mimread(folder / "film.gif")


@pytest.fixture
def egl(monkeypatch):
    """Renders off screen, or skips where that cannot be."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    try:
        from mujoco.egl import GLContext

        GLContext(16, 16).free()
    except Exception as error:  # the drivers fail in many ways
        pytest.skip(f"EGL cannot render on this machine: {error!r}")


def mean_difference(frame, other):
    return np.abs(frame.astype(int) - other.astype(int)).mean()


@pytest.mark.usefixtures("egl")
def test_every_frame_of_the_first_episode_is_delivered_in_order(tmp_path):
    kwargs = {"max_episode_steps": 6, "width": 48, "height": 32}
    plain = make_env("HalfCheetah-v5", {**kwargs, "render_mode": "rgb_array"})
    policy = policy_for(plain)
    observation, _ = plain.reset(seed=SEED)
    expected, ended = [], False
    while not ended:
        expected.append(plain.render())
        with torch.no_grad():
            action = policy(torch.from_numpy(observation).to(torch.float32).unsqueeze(0))[0].numpy()
        observation, _, _, ended, _ = plain.step(action)
    plain.close()

    score, frames = filmed(kwargs, policy, tmp_path)
    assert score.lengths.tolist() == [6, 6]
    assert len(frames) == 6
    for index, frame in enumerate(frames):
        assert frame.shape[:2] == (32, 48)
        # A GIF has few colors; neighbors in time differ by far more.
        differences = [mean_difference(frame[..., :3], each) for each in expected]
        assert int(np.argmin(differences)) == index


@pytest.mark.usefixtures("egl")
def test_filming_changes_no_score(tmp_path):
    kwargs = {"max_episode_steps": 8, "width": 32, "height": 32}
    policy = policy_for(make_env("HalfCheetah-v5", kwargs))
    score, frames = filmed(kwargs, policy, tmp_path)
    with closing(Scorer(official_maker(EnvConfig("HalfCheetah-v5", kwargs)), 2)) as scorer:
        plain = scorer.score(policy, seed=SEED)
    assert len(frames) == 8
    assert score.returns.tolist() == plain.returns.tolist()
