"""Vector environments of other packages, played by populations; see docs/environments.md for the versions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import ForeignVectorEnv
from es_flipout.rollout import Scorer

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("default")]


def train(envs, generations=2):
    """Trains for some generations; returns the strategy and the fitness of each generation."""
    wrapped = ForeignVectorEnv(envs)  # flattens observations
    policy = MLPPolicy(
        wrapped.single_observation_space,
        wrapped.single_action_space,
        hidden_sizes=[4],
        generator=torch.Generator().manual_seed(0),
    )
    es, fitness = FlipoutES(policy, population_size=8, sigma=0.1), []
    for _ in range(generations):
        episodes = evaluate(es.ask(), envs)
        fitness.append(episodes.fitness.tolist())
        es.tell(episodes.fitness)
    return es, fitness


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "HalfCheetah-v5", "CartpoleBalance-v1", "FetchReachDense-v4"]
)
def test_envpool(env_id):
    import envpool

    envs = envpool.make(env_id, env_type="gymnasium", num_envs=4, seed=1)
    es, fitness = train(envs)
    assert len(set(fitness[0])) > 1
    score = Scorer(ForeignVectorEnv(envs)).score(es.policy, seed=0)
    assert np.isfinite(score.returns).all()


class Point(NamedTuple):
    """A point on a line, which is paid for being near 0."""

    obs: Any
    reward: Any
    done: Any


def point_env(num_envs):
    import jax
    import jax.numpy as jnp
    from jax_vector_env import JaxVectorEnv

    def reset(key):
        return Point(jax.random.uniform(key, (1,), minval=-1.0), jnp.float32(0), jnp.float32(0))

    def step(state, action):
        position = state.obs + 0.2 * action
        return Point(position, -jnp.abs(position[0]), (jnp.abs(position[0]) > 2).astype(jnp.float32))

    return JaxVectorEnv(reset, step, 1, 1, num_envs, max_episode_steps=10)


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_a_functional_jax_environment(num_envs):
    import jax

    envs = point_env(num_envs)
    es, fitness = train(envs)
    assert len(set(fitness[0])) == 8
    population = es.ask()
    found = evaluate(population, envs, reset_seeds=range(8)).fitness
    for m in range(8):
        key = jax.random.PRNGKey(m)
        position = torch.from_dlpack(jax.random.uniform(key, (1,), minval=-1.0)).clone()
        total = 0.0
        for _ in range(10):
            with torch.no_grad():
                position = position + 0.2 * population.module(m)(position[None])[0]
            total -= float(position.abs())
        assert found[m].item() == pytest.approx(total, rel=1e-4)


@pytest.mark.timeout(900)  # it compiles its kernels
def test_mujoco_playground():
    from jax_vector_env import JaxVectorEnv
    from mujoco_playground import registry

    env = registry.load("CartpoleBalance")
    envs = JaxVectorEnv(
        env.reset, env.step, env.observation_size, env.action_size, num_envs=4, max_episode_steps=20
    )
    _, fitness = train(envs)
    assert all(0 < each < 20 for each in fitness[0] + fitness[1])
