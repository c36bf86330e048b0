"""BackgroundScorer: the official scores, found beside something else."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import MLPPolicy
from es_flipout.rollout import BackgroundScorer, PlayError, PlayStoppedError, Scorer
from es_flipout.run.config import EnvConfig

EPISODES, SEED = 3, 40
ENV = EnvConfig("HalfCheetah-v5", {"max_episode_steps": 20})
LONG = EnvConfig("HalfCheetah-v5", {"max_episode_steps": 3000})


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


def make_policy(env=ENV, seed=0, policy_class=MLPPolicy):
    with deprecations_silenced():
        official = gym.make(env.id, **env.kwargs)
    spaces = official.observation_space, official.action_space
    policy = policy_class(*spaces, hidden_sizes=(8,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        policy.network[-1].weight.mul_(50.0)  # a new policy hardly acts
    return policy


def official_score(policy, env=ENV):
    judge = Scorer(env, EPISODES)
    score = judge.score(policy, seed=SEED)
    judge.close()
    return score


@pytest.mark.parametrize("processes", [0, 2])
def test_it_gives_the_official_scores(processes):
    judge = BackgroundScorer(ENV, EPISODES, processes=processes)
    scores = []
    for seed in (0, 1):
        policy = make_policy(seed=seed)
        judge.start(policy, SEED)
        scores.append(judge.result())
        assert scores[-1] == judge.result() == official_score(policy)
    assert not set(scores[0].returns) & set(scores[1].returns)
    judge.close()


def test_the_score_is_of_the_policy_as_it_was():
    judge, policy = BackgroundScorer(ENV, EPISODES), make_policy()
    expected = official_score(policy)
    judge.start(policy, SEED)
    with torch.no_grad():
        policy.network[-1].weight.neg_()
    assert judge.result() == expected != official_score(policy)
    judge.close()


@pytest.fixture
def here():
    """A judge of an environment that this process alone knows, and its policy."""
    env = EnvConfig("Here-v0")
    judge = BackgroundScorer(env, EPISODES)
    yield judge, make_policy(env), env
    judge.close()


def test_an_environment_that_is_known_here_alone_is_stepped_here(here):
    judge, policy, env = here
    expected = official_score(policy, env)
    judge.start(policy, SEED)
    assert judge.result() == expected
    assert judge._worker is None
    judge.start(policy, SEED)
    asked = iter([False, False, True])
    with pytest.raises(PlayStoppedError):
        judge.result(asked.__next__)
    assert judge.result() == expected


class StaysHere(MLPPolicy):
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("I stay here")

    def __deepcopy__(self, memo):
        return self


def test_a_policy_that_cannot_be_sent_is_scored_here():
    judge, policy = BackgroundScorer(ENV, EPISODES), make_policy(policy_class=StaysHere)
    judge.start(policy, SEED)
    assert judge._worker is None
    assert judge.result() == official_score(policy)
    judge.close()


def test_whoever_waits_may_stop_and_wait_again():
    judge, policy = BackgroundScorer(LONG, EPISODES), make_policy(LONG)
    judge.start(policy, SEED)
    with pytest.raises(PlayStoppedError):
        judge.result(lambda: True)
    assert judge.result().lengths == [3000] * EPISODES
    judge.close()


def test_a_new_score_takes_the_place_of_one_under_way():
    judge, policies = BackgroundScorer(ENV, EPISODES), [make_policy(seed=seed) for seed in range(3)]
    for policy in policies:
        judge.start(policy, SEED)
    assert judge.result() == official_score(policies[-1])
    judge.close()


def test_a_process_that_dies_is_replaced_and_the_score_repeated():
    judge, policy = BackgroundScorer(LONG, EPISODES), make_policy(LONG)
    judge.start(policy, SEED)
    expected = judge.result()
    judge.start(policy, SEED)
    for _ in range(2):
        process, _ = judge._worker
        process.kill()
        process.join()
        judge._receive(lambda: False)  # sees that it died
        assert judge._worker[0] is not process
    assert judge.result() == expected
    judge.start(policy, SEED)  # whoever dies now has no forerunners
    judge._worker[0].kill()
    assert judge.result() == expected
    judge.close()


def test_a_score_that_processes_do_not_survive_is_given_up():
    judge = BackgroundScorer(LONG, EPISODES)
    judge.start(make_policy(LONG), SEED)
    message = r"3 processes died while they scored the center \(exit code of the last: -9\)"
    with pytest.raises(PlayError, match=message):
        judge.result(lambda: judge._worker is not None and judge._worker[0].kill())
    with pytest.raises(PlayError, match=message):
        judge.result()
    judge.close()


def test_a_stop_comes_before_a_process_that_died():
    judge, policy = BackgroundScorer(LONG, EPISODES), make_policy(LONG)
    judge.start(policy, SEED)
    judge._worker[0].kill()  # as by a signal to all
    with pytest.raises(PlayStoppedError):
        judge.result(lambda: True)
    assert judge.result().lengths == [3000] * EPISODES
    judge.close()


def test_what_is_under_way_is_given_up_in_the_end():
    judge = BackgroundScorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 10**6}), 1)
    judge.start(make_policy(), SEED)
    process, _ = judge._worker
    with pytest.raises(PlayStoppedError):
        judge.result(iter([False] * 20 + [True]).__next__)  # by now it steps
    judge.close()
    assert process.exitcode == 0  # it ended by itself


def test_what_a_policy_raises_is_raised_by_the_result():
    judge, policy = BackgroundScorer(ENV, EPISODES), make_policy()
    policy.network[0] = torch.nn.Linear(7, 8)
    judge.start(policy, SEED)
    for _ in range(2):
        with pytest.raises(PlayError, match=r"^the center cannot be scored: RuntimeError: .*shape"):
            judge.result()
    policy = make_policy()
    judge.start(policy, SEED)
    assert judge.result() == official_score(policy)
    judge.close()


def test_an_environment_that_cannot_be_made_is_told_at_once():
    with pytest.raises(TypeError, match="color"):
        BackgroundScorer(EnvConfig("InvertedPendulum-v5", {"color": "red"}), 1)


CTRL_C = """
import os, signal, threading
from gymnasium import spaces
from es_flipout.run.config import EnvConfig
from es_flipout.rollout import BackgroundScorer
from es_flipout.policies import LinearPolicy

signal.signal(signal.SIGINT, lambda *_: print("interrupted"))  # as es-train does, to end a run by itself
judge = BackgroundScorer(EnvConfig("InvertedPendulum-v5"), 1)
policy = LinearPolicy(spaces.Box(-1, 1, (4,)), spaces.Box(-3, 3, (1,)))
threading.Timer({seconds}, os.killpg, (0, signal.SIGINT)).start()
judge.start(policy, 0)
judge.result()
assert judge._is_beside
judge.close()
print("scored")
"""


@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_ctrl_c_does_not_end_a_fork_server_that_starts(tmp_path, seconds):
    script = tmp_path / "script.py"
    script.write_text(CTRL_C.format(seconds=seconds))
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "interrupted\nscored\n"), result.stderr
