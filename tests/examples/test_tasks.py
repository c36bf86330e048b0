"""The example tasks: what recall and catch show, and what they ask of a policy."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from examples.catch import Catch
from examples.recall import Recall


def episode(env: gym.Env, act, seed: int) -> tuple[list[np.ndarray], list[float]]:
    """Returns what was observed, the last observation included, and the rewards; `act(observation)` acts."""
    observation, _ = env.reset(seed=seed)
    observations, rewards, over = [observation], [], False
    while not over:
        observation, reward, over, truncated, _ = env.step(act(observation))
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


SEEDS = range(40)


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_the_cue_is_shown_once_and_asked_for_at_the_end(delay):
    cues = set()
    for seed in SEEDS:
        observations, rewards = episode(Recall(delay), lambda observation: np.ones(1), seed)
        acted_on = np.array(observations[:-1])
        assert acted_on.shape == (delay + 2, 3)
        cue = acted_on[0, 0]
        cues.add(cue)
        assert acted_on[0, 1:].tolist() == [0, 0]
        assert (acted_on[1:, 0] == 0).all()
        assert acted_on[-1].tolist() == [0, 0, 1]
        assert rewards == [0.0] * (delay + 1) + [cue]
    assert cues == {-1.0, 1.0}


def test_without_memory_nothing_is_better_than_chance():
    # The reward is the last action times the cue, and the observation that this action is to be chosen by is
    # always the same one. So is then the action, which with cues of both signs, equally often, earns nothing.
    questions = {
        tuple(episode(Recall(), lambda observation: np.ones(1), seed)[0][-2].tolist()) for seed in SEEDS
    }
    assert questions == {(0.0, 0.0, 1.0)}
    generator = np.random.default_rng(0)
    for _ in range(5):
        weights = generator.normal(size=3)

        def memoryless(observation, weights=weights):
            return np.tanh(weights @ observation)[None]

        returns = {1.0: set(), -1.0: set()}
        for seed in SEEDS:
            observations, rewards = episode(Recall(), memoryless, seed)
            returns[float(observations[0][0])].add(sum(rewards))
        (when_positive,), (when_negative,) = returns.values()
        assert when_positive == -when_negative


def test_with_memory_every_cue_is_recalled():
    for seed in SEEDS:
        remembered = []

        def remembering(observation, remembered=remembered):
            remembered.append(observation[0])
            return np.array([remembered[0]])

        assert sum(episode(Recall(), remembering, seed)[1]) == 1.0


def test_the_ball_can_always_be_caught():
    def follow(image):
        (paddle,) = np.flatnonzero(image[-1]) if len(np.flatnonzero(image[-1])) == 1 else [None]
        ball = np.flatnonzero(image[:-1].any(axis=0))
        return 1 if paddle is None or len(ball) == 0 else 1 + np.sign(ball[0] - paddle)

    starts = set()
    for seed in SEEDS:
        observations, rewards = episode(Catch(), follow, seed)
        starts.add(observations[0].tobytes())
        assert rewards == [0.0] * 6 + [1.0]
    assert len(starts) > 20


def test_a_missed_ball_costs_by_its_distance():
    returns = {sum(episode(Catch(), lambda image: 0, seed)[1]) for seed in SEEDS}  # to the left wall
    assert returns == {1 - 2 * column / 7 for column in range(8)}


@pytest.mark.parametrize("env", [Recall(), Catch(), Catch(size=10)], ids=["recall", "catch", "catch-10"])
@pytest.mark.filterwarnings("ignore:.*render:UserWarning", "ignore:.*spec:UserWarning")
def test_gymnasium_finds_nothing_wrong(env):
    check_env(env, skip_render_check=True)
