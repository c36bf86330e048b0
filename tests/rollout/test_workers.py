"""Members shared out over processes: nothing but the time depends on how."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from functools import partial

import pytest
import torch
from torch import nn

from es_flipout import Flipout, FlipoutES, GRUPolicy, Independent, LowRank, MLPPolicy, make_vec
from es_flipout.envs.native import native_maker
from es_flipout.rollout import VectorizedEvaluator, reset_seeds
from es_flipout.rollout.sharded import ShardedEvaluator
from es_flipout.run.build import make_evaluator
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig

LIMIT = {"max_episode_steps": 40}
MEMBERS = 12


def assert_same(one, other):
    assert torch.equal(one.returns, other.returns)
    assert torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.observations.mean, other.observations.mean)
    assert torch.equal(one.observations.m2, other.observations.m2)
    assert one.failures == other.failures


def setting(env_id: str, policy_class=MLPPolicy, family=Flipout()):  # noqa: B008 - it is frozen
    env = make_vec(env_id, 5, info=False, **LIMIT)
    torch.manual_seed(0)
    policy = policy_class(env.single_observation_space, env.single_action_space)
    es = FlipoutES(policy, population_size=MEMBERS, sigma=0.1, perturbation=family)
    return env, policy, es


def shards(env_id: str, policy: nn.Module, slots: int, workers: int) -> ShardedEvaluator:
    make_env = partial(native_maker(env_id, **LIMIT), slots, info=False, threads=1)
    return ShardedEvaluator(policy, make_env, workers)


@pytest.mark.parametrize(
    ("env_id", "policy_class", "family"),
    [
        ("Hopper-v5", MLPPolicy, Flipout()),
        ("Humanoid-v5", MLPPolicy, LowRank(1)),
        ("HalfCheetah-v5", MLPPolicy, Independent()),
        ("Hopper-v5", GRUPolicy, Flipout(num_bases=2)),
    ],
    ids=str,
)
def test_processes_give_what_one_process_gives(env_id, policy_class, family):
    env, policy, es = setting(env_id, policy_class, family)
    with closing(shards(env_id, policy, slots=2, workers=3)) as evaluator:
        for generation in range(2):  # the second with other weights and observation statistics
            population, seeds = es.ask(), reset_seeds(MEMBERS, 2, generation=generation)
            expected = VectorizedEvaluator(env).evaluate(population, seeds, episode_limit=30)
            assert_same(evaluator.evaluate(population, seeds, episode_limit=30), expected)
            es.tell(expected.fitness)
            policy.normalizer.merge(expected.observations)


def test_a_process_that_is_killed_changes_nothing(monkeypatch):
    env, policy, es = setting("Hopper-v5")
    population, seeds = es.ask(), reset_seeds(MEMBERS, 3)
    expected = VectorizedEvaluator(env).evaluate(population, seeds)
    with closing(shards("Hopper-v5", policy, slots=2, workers=2)) as evaluator:
        victims, receive = [evaluator._workers[0]], evaluator._receive

        def kill_one_first(*arguments):
            if victims:
                assert victims[0].chunks  # the members have been handed out
                os.kill(victims.pop().process.pid, signal.SIGKILL)
            receive(*arguments)

        monkeypatch.setattr(evaluator, "_receive", kill_one_first)
        assert_same(evaluator.evaluate(population, seeds), expected)
        assert not victims
        assert all(worker.process.is_alive() for worker in evaluator._workers)
        assert_same(evaluator.evaluate(population, seeds), expected)


class HasALock(MLPPolicy):
    def __getstate__(self):
        raise TypeError("it cannot be pickled")


class IsOfThisProcess(MLPPolicy):
    def __setstate__(self, state):
        raise TypeError("it cannot be unpickled")


@pytest.mark.parametrize("policy_class", [HasALock, IsOfThisProcess])
def test_a_policy_that_no_process_can_be_sent_is_evaluated_in_this_one(policy_class):
    config = Config(
        env=EnvConfig("Hopper-v5", LIMIT, num_envs=32),
        es=ESConfig(population_size=32),
        evaluation=EvaluationConfig(interval=0),
        threads=2,
    )
    env = make_vec("Hopper-v5", 1)
    with closing(
        make_evaluator(config, policy_class(env.single_observation_space, env.single_action_space))
    ) as one:
        assert isinstance(one, VectorizedEvaluator)
    with closing(
        make_evaluator(config, MLPPolicy(env.single_observation_space, env.single_action_space))
    ) as two:
        assert isinstance(two, ShardedEvaluator)
