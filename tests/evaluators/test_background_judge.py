"""BackgroundJudge: the official scores, found beside something else."""

from __future__ import annotations

import multiprocessing as mp

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.config import EnvConfig
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.evaluators import BackgroundJudge, EvaluationStoppedError, OfficialEvaluator
from es_flipout.policies import MLPPolicy

EPISODES, SEED = 3, 40
ENV = EnvConfig("InvertedPendulum-v5", {"max_episode_steps": 40, "reset_noise_scale": 0.1})


class HereEnv(gym.Env):
    """Is registered in this process alone; pays the sum of what it observes."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        self.rng, self.time = np.random.default_rng(seed), 0
        return self._observe(), {}

    def _observe(self):
        self.seen = self.rng.uniform(-1, 1, 2).astype(np.float32)
        return self.seen

    def step(self, action):
        self.time += 1
        reward = float(self.seen.sum() * action[0])
        return self._observe(), reward, self.time == 5, False, {}


gym.register("Here-v0", HereEnv)


def make_policy(env=ENV, seed=0):
    with deprecations_silenced():
        official = gym.make(env.id, **env.kwargs)
    spaces = official.observation_space, official.action_space
    return MLPPolicy(*spaces, hidden_sizes=(8,), generator=torch.Generator().manual_seed(seed))


def official_score(policy, env=ENV):
    judge = OfficialEvaluator(env, EPISODES)
    score = judge.score(policy, seed=SEED)
    judge.close()
    return score


@pytest.mark.parametrize("processes", [1, 2])
def test_it_gives_the_official_scores(processes):
    judge = BackgroundJudge(ENV, EPISODES, processes=processes)
    for seed in (0, 1):
        policy = make_policy(seed=seed)
        judge.start(policy, SEED)
        assert judge.result() == judge.result() == official_score(policy)
    judge.close()


def test_the_score_is_of_the_policy_as_it_was():
    judge, policy = BackgroundJudge(ENV, EPISODES, processes=1), make_policy()
    expected = official_score(policy)
    judge.start(policy, SEED)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
    assert judge.result() == expected
    judge.close()


def test_an_environment_that_is_known_here_alone_is_stepped_here():
    env = EnvConfig("Here-v0")
    judge, policy = BackgroundJudge(env, EPISODES, processes=1), make_policy(env)
    judge.start(policy, SEED)
    assert judge.result() == official_score(policy, env)
    asked = iter([False, False, True])
    with pytest.raises(EvaluationStoppedError):
        judge.result(lambda: next(asked))
    assert judge.result() == official_score(policy, env)
    judge.close()


def test_whoever_waits_may_stop_and_wait_again():
    judge = BackgroundJudge(EnvConfig("HalfCheetah-v5"), EPISODES, processes=1)
    policy = make_policy(EnvConfig("HalfCheetah-v5"))
    judge.start(policy, SEED)
    with pytest.raises(EvaluationStoppedError):
        judge.result(lambda: True)
    assert judge.result().lengths == [1000] * EPISODES
    judge.close()


def test_what_is_under_way_is_given_up_in_the_end():
    children = set(mp.active_children())
    judge = BackgroundJudge(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 10**6}), 1, processes=1)
    judge.start(make_policy(EnvConfig("HalfCheetah-v5")), SEED)
    [process] = set(mp.active_children()) - children
    judge.close()
    assert not process.is_alive()
    assert not judge._thread.is_alive()


def test_what_a_policy_raises_is_raised_by_the_result():
    judge, policy = BackgroundJudge(ENV, EPISODES, processes=1), make_policy()
    policy.network[0] = torch.nn.Linear(7, 8)
    judge.start(policy, SEED)
    with pytest.raises(RuntimeError, match="shape"):
        judge.result()
    judge.close()


def test_an_environment_that_cannot_be_made_is_told_at_once():
    with pytest.raises(TypeError, match="colour"):
        BackgroundJudge(EnvConfig("InvertedPendulum-v5", {"colour": "red"}), 1, processes=1)
