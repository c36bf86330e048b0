"""Scorer: no more and no less than a plain Gymnasium loop."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import MLPPolicy
from es_flipout.rollout import OfficialScore, PlayStoppedError, Scorer
from es_flipout.run.config import EnvConfig

EPISODES = 4
SEED = 70

TASKS = [
    pytest.param("HalfCheetah-v5", {"max_episode_steps": 10}, id="half-cheetah"),
    # Ends at different times, by falling and by the time limit.
    pytest.param("InvertedPendulum-v5", {"max_episode_steps": 12, "reset_noise_scale": 0.1}, id="pendulum"),
    pytest.param("Humanoid-v5", {"max_episode_steps": 30}, id="humanoid"),
    pytest.param("CartPole-v1", {"max_episode_steps": 100}, id="cartpole"),
]


class NegateReward(gym.RewardWrapper):
    """Turns every reward into its negative."""

    def reward(self, reward):
        return -reward


def make_env(env_id, kwargs):
    with deprecations_silenced():
        return gym.make(env_id, **kwargs)


def policy_for(env):
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=(8,), generator=generator)
    with torch.no_grad():
        # A new policy hardly acts: its rewards would say little about it.
        policy.network[-1].weight.mul_(50.0)
    return policy


def plain_episode(env, policy, seed):
    observation, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while not ended:
        with torch.no_grad():
            action = policy(torch.from_numpy(observation).to(torch.float32).unsqueeze(0))[0].numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return total, length


@pytest.mark.parametrize(("env_id", "kwargs"), TASKS)
def test_score_equals_a_plain_gymnasium_loop_of_consecutive_seeds(env_id, kwargs):
    env = make_env(env_id, kwargs)
    policy = policy_for(env)
    expected = [plain_episode(env, policy, SEED + i) for i in range(EPISODES)]
    player = Scorer(EnvConfig(env_id, kwargs), EPISODES)
    score = player.score(policy, seed=SEED)
    player.close()
    # A float32 forward of one row differs from that of four by some 1e-7, which the physics amplifies to
    # 1e-5 at most; the returns of different seeds are far wider apart, as the last line asserts.
    assert score.returns == pytest.approx([total for total, _ in expected], rel=0, abs=1e-4)
    assert score.lengths == [length for _, length in expected]
    if env_id in ("InvertedPendulum-v5", "CartPole-v1"):
        assert len(set(score.lengths)) > 1
    else:
        assert np.diff(np.sort(score.returns)).min() > 1e-3


def test_the_same_seed_scores_the_same_and_another_does_not():
    player = Scorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 15}), EPISODES)
    policy = policy_for(player.env)
    first = player.score(policy, seed=SEED)
    again = player.score(policy, seed=SEED)
    later = player.score(policy, seed=SEED + EPISODES)
    player.close()
    assert first == again
    assert not set(first.returns) & set(later.returns)


def test_env_kwargs_reach_the_environment():
    kwargs = {"max_episode_steps": 3, "forward_reward_weight": 0.0, "ctrl_cost_weight": 0.0}
    player = Scorer(EnvConfig("HalfCheetah-v5", kwargs), 2)
    score = player.score(policy_for(player.env), seed=0)
    player.close()
    assert score == OfficialScore(returns=[0.0, 0.0], lengths=[3, 3])


def test_wrappers_surround_the_environment_innermost_first():
    wrappers = ["TimeAwareObservation", f"{__name__}:NegateReward"]
    player = Scorer(EnvConfig("CartPole-v1", {"max_episode_steps": 5}, wrappers=wrappers), 2)
    env = player.env
    score = player.score(policy_for(env), seed=0)
    player.close()
    assert isinstance(env, NegateReward)
    assert isinstance(env.env, gym.wrappers.TimeAwareObservation)
    assert env.observation_space.shape == (5,)
    assert score == OfficialScore(returns=[-5.0, -5.0], lengths=[5, 5])


def test_mean_and_deviation_are_of_the_episodes():
    # Mean 4, squared deviations 9 + 1 + 4 = 14 (9: 1-4, 1: 5-4, 4: 6-4), over 3 episodes.
    score = OfficialScore(returns=[1.0, 5.0, 6.0], lengths=[1, 1, 1])
    assert score.mean == pytest.approx(4.0)
    assert score.std == pytest.approx((14 / 3) ** 0.5)
    assert OfficialScore(returns=[2.0], lengths=[1]).std == 0.0


class BreaksEnv(gym.Env):
    """Pays 1 a step for 3 steps; an odd seed breaks the second, and a multiple of 4 the reset."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        if seed % 4 == 0:
            raise RuntimeError("out of paint")
        self.breaks, self.time = seed % 2 == 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.breaks and self.time == 2:
            raise RuntimeError("out of paint")
        return np.zeros(2, np.float32), 1.0, self.time == 3, False, {}


gym.register("Breaks-v0", BreaksEnv)


def test_an_episode_that_breaks_is_left_out_of_the_score():
    player = Scorer(EnvConfig("Breaks-v0"), 5)
    for _ in range(2):  # what broke is replaced
        score = player.score(policy_for(player.env), seed=1)
        np.testing.assert_array_equal(score.returns, [np.nan, 3.0, np.nan, np.nan, np.nan])
        assert score.lengths[1] == 3
        assert (score.failed, score.mean, score.std) == (4, 3.0, 0.0)
    player.close()


def test_a_score_of_broken_episodes_alone_is_nan():
    score = OfficialScore(returns=[np.nan, np.nan], lengths=[1, 0])
    assert score.failed == 2
    assert np.isnan([score.mean, score.std]).all()


def test_processes_score_the_same():
    config = EnvConfig("CartPole-v1", {"max_episode_steps": 50})
    scores = []
    for processes in (0, 2):
        player = Scorer(config, EPISODES, processes=processes)
        scores.append(player.score(policy_for(player.env), seed=SEED))
        player.close()
    assert scores[0] == scores[1]


def test_a_stop_is_obeyed_before_the_next_step_and_leaves_no_trace():
    player = Scorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 8}), 2)
    policy, asked = policy_for(player.env), []

    def should_stop():
        asked.append(1)
        return len(asked) == 4

    whole = player.score(policy, seed=SEED)
    with pytest.raises(PlayStoppedError):
        player.score(policy, seed=SEED, should_stop=should_stop)
    assert len(asked) == 4
    assert player.score(policy, seed=SEED) == whole
    player.close()


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
def test_every_frame_of_the_first_episode_is_delivered_in_order():
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

    frames = []
    player = Scorer(EnvConfig("HalfCheetah-v5", kwargs), 2, render=True)
    score = player.score(policy, seed=SEED, on_frame=frames.append)
    player.close()
    assert score.lengths == [6, 6]
    assert len(frames) == 6
    for frame, expected_frame in zip(frames, expected, strict=True):
        assert frame.shape == (32, 48, 3)
        assert frame.dtype == np.uint8
        # Where the two forwards round apart a pixel may too; neighbors in time differ by far more.
        assert mean_difference(frame, expected_frame) < 0.05
    assert min(map(mean_difference, frames, frames[1:])) > 0.2


@pytest.mark.usefixtures("egl")
def test_rendering_changes_no_score():
    kwargs = {"max_episode_steps": 8, "width": 32, "height": 32}
    scores = []
    for render in (False, True):
        player = Scorer(EnvConfig("HalfCheetah-v5", kwargs), 2, render=render)
        policy = policy_for(player.env)
        frames = []
        scores.append(player.score(policy, seed=SEED, on_frame=frames.append if render else None))
        player.close()
    assert len(frames) == 8
    assert scores[0] == scores[1]
