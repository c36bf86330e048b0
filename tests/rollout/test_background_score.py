"""BackgroundScorer: scores, found beside something else."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import MLPPolicy
from es_flipout.rollout import BackgroundScorer, PlayError, PlayStoppedError, QuickScorer
from es_flipout.run.build import native_scorer, official_scorer
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


def background(env=ENV, processes=0):
    make = partial(official_scorer, env, EPISODES, processes=processes)
    return BackgroundScorer(partial(QuickScorer, make), here=processes > 0)


def outcome(score):
    """Returns the returns and the lengths of the episodes of a score."""
    return score.returns.tolist(), score.lengths.tolist()


def official_score(policy, env=ENV):
    scorer = official_scorer(env, EPISODES)
    score = scorer.score(policy, seed=SEED)
    scorer.close()
    return outcome(score)


@pytest.mark.parametrize("processes", [0, 2])
def test_it_gives_the_official_scores(processes):
    scorer = background(ENV, processes)
    scores = []
    for seed in (0, 1):
        policy = make_policy(seed=seed)
        scorer.start(policy, SEED)
        scores.append(outcome(scorer.result()))
        assert scores[-1] == outcome(scorer.result()) == official_score(policy)
    assert not set(scores[0][0]) & set(scores[1][0])
    scorer.close()


@pytest.mark.parametrize("here", [False, True])
def test_the_official_environment_judges_on_request(here):
    # Not equal here, so that it shows which one was played in.
    quick = partial(native_scorer, EnvConfig("HalfCheetah-v5", {"max_episode_steps": 5}), EPISODES)
    make = partial(QuickScorer, partial(official_scorer, ENV, EPISODES), quick)
    scorer, policy = BackgroundScorer(make, here=here), make_policy()
    for official, length in ((False, 5), (True, 20), (False, 5)):
        scorer.start(policy, SEED, official=official)
        assert scorer.result().lengths.tolist() == [length] * EPISODES
        assert (scorer._worker is None) == here
    scorer.close()


def test_an_environment_that_cannot_be_made_anywhere_is_named():
    scorer = background(EnvConfig("HalfCheetah-v5", {"speed": 3}))
    scorer.start(make_policy(), SEED)
    with pytest.raises(PlayError, match=r"^HalfCheetah-v5: TypeError: .*'speed'"):
        scorer.result()
    scorer.close()


def test_the_score_is_of_the_policy_as_it_was():
    scorer, policy = background(ENV), make_policy()
    expected = official_score(policy)
    scorer.start(policy, SEED)
    with torch.no_grad():
        policy.network[-1].weight.neg_()
    assert outcome(scorer.result()) == expected != official_score(policy)
    scorer.close()


@pytest.fixture
def here():
    """A scorer of an environment that this process alone knows, and its policy."""
    env = EnvConfig("Here-v0")
    scorer = background(env)
    yield scorer, make_policy(env), env
    scorer.close()


def test_an_environment_that_is_known_here_alone_is_stepped_here(here):
    scorer, policy, env = here
    expected = official_score(policy, env)
    scorer.start(policy, SEED)
    assert outcome(scorer.result()) == expected
    assert scorer._worker is None
    scorer.start(policy, SEED)
    asked = iter([False, False, True])
    with pytest.raises(PlayStoppedError):
        scorer.result(asked.__next__)
    assert outcome(scorer.result()) == expected


class StaysHere(MLPPolicy):
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("I stay here")

    def __deepcopy__(self, memo):
        return self


def test_a_policy_that_cannot_be_sent_is_scored_here():
    scorer, policy = background(ENV), make_policy(policy_class=StaysHere)
    scorer.start(policy, SEED)
    assert scorer._worker is None
    assert outcome(scorer.result()) == official_score(policy)
    scorer.close()


def test_whoever_waits_may_stop_and_wait_again():
    scorer, policy = background(LONG), make_policy(LONG)
    scorer.start(policy, SEED)
    with pytest.raises(PlayStoppedError):
        scorer.result(lambda: True)
    assert scorer.result().lengths.tolist() == [3000] * EPISODES
    scorer.close()


def test_a_new_score_takes_the_place_of_one_under_way():
    scorer, policies = background(ENV), [make_policy(seed=seed) for seed in range(3)]
    for policy in policies:
        scorer.start(policy, SEED)
    assert outcome(scorer.result()) == official_score(policies[-1])
    scorer.close()


def test_a_process_that_dies_is_replaced_and_the_score_repeated():
    scorer, policy = background(LONG), make_policy(LONG)
    scorer.start(policy, SEED)
    expected = outcome(scorer.result())
    scorer.start(policy, SEED)
    for _ in range(2):
        process = scorer._worker.process
        process.kill()
        process.join()
        scorer._receive(lambda: False)  # sees that it died
        assert scorer._worker.process is not process
    assert outcome(scorer.result()) == expected
    scorer.start(policy, SEED)  # whoever dies now has no forerunners
    scorer._worker.kill()
    assert outcome(scorer.result()) == expected
    scorer.close()


def test_a_score_that_processes_do_not_survive_is_given_up():
    scorer = background(LONG)
    scorer.start(make_policy(LONG), SEED)
    message = r"3 processes died while they scored the center \(the last: .* \(exit code -9\)\)"
    with pytest.raises(PlayError, match=message):
        scorer.result(lambda: scorer._worker is not None and scorer._worker.kill())
    with pytest.raises(PlayError, match=message):
        outcome(scorer.result())
    scorer.close()


def test_a_stop_comes_before_a_process_that_died():
    scorer, policy = background(LONG), make_policy(LONG)
    scorer.start(policy, SEED)
    scorer._worker.kill()  # as by a signal to all
    with pytest.raises(PlayStoppedError):
        scorer.result(lambda: True)
    assert scorer.result().lengths.tolist() == [3000] * EPISODES
    scorer.close()


def test_what_is_under_way_is_given_up_in_the_end():
    scorer = background(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 10**6}))
    scorer.start(make_policy(), SEED)
    process = scorer._worker.process
    with pytest.raises(PlayStoppedError):
        scorer.result(iter([False] * 20 + [True]).__next__)  # by now it steps
    scorer.close()
    assert process.exitcode == 0  # it ended by itself


def test_what_a_policy_raises_is_raised_by_the_result():
    scorer, policy = background(ENV), make_policy()
    policy.network[0] = torch.nn.Linear(7, 8)
    scorer.start(policy, SEED)
    for _ in range(2):
        with pytest.raises(PlayError, match=r"scored: policy MLPPolicy cannot act: RuntimeError: .*shape"):
            outcome(scorer.result())
    policy = make_policy()
    scorer.start(policy, SEED)
    assert outcome(scorer.result()) == official_score(policy)
    scorer.close()


CTRL_C = """
import os, signal, threading
from functools import partial
from gymnasium import spaces
from es_flipout.run.build import official_scorer
from es_flipout.run.config import EnvConfig
from es_flipout.rollout import BackgroundScorer, QuickScorer
from es_flipout.policies import LinearPolicy

signal.signal(signal.SIGINT, lambda *_: print("interrupted"))  # as es-train does, to end a run by itself
make = partial(official_scorer, EnvConfig("InvertedPendulum-v5"), 1)
scorer = BackgroundScorer(partial(QuickScorer, make))
policy = LinearPolicy(spaces.Box(-1, 1, (4,)), spaces.Box(-3, 3, (1,)))
threading.Timer({seconds}, os.killpg, (0, signal.SIGINT)).start()
scorer.start(policy, 0)
scorer.result()
assert scorer._is_beside
scorer.close()
print("scored")
"""


@pytest.mark.parametrize("seconds", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_ctrl_c_does_not_end_a_fork_server_that_starts(tmp_path, seconds):
    script = tmp_path / "script.py"
    script.write_text(CTRL_C.format(seconds=seconds))
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "interrupted\nscored\n"), result.stderr
