"""evosax: Open_ES over `EpisodePool`, whose workers run the policies of their envs by a jitted vmap.

Tried on a machine that was not quiet, CPU time of an env step with 8, 16 and 32 envs: 93, 84 and 88 us on
HalfCheetah, 479, 508 and 452 us on Humanoid. The products written out as multiply and sum: slower, but for
Humanoid with 32 envs. jax's asynchronous dispatch is off, since a worker can only wait for the answer; under
load no difference was seen.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)  # before jax is imported, here and in every worker

from functools import partial
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import Open_ES

from benchmarks.peers.contestant import (
    LEARNING_RATE,
    MAX_EPISODE_STEPS,
    SIGMA,
    Job,
    Measurement,
    cores,
    main,
    time_generations,
)
from benchmarks.peers.policy import action_reach, initial_weights, layer_shapes, layer_slices
from benchmarks.peers.pool import EpisodePool, Floats

BEST = {"processes": cores(), "num_envs": 16}

Layers = list[jax.Array]

jax.config.update("jax_cpu_enable_async_dispatch", False)  # here and in every worker: no thread in between


def _act(layers: Layers, reach: jax.Array, mean: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the actions of one policy."""
    x = jnp.clip((x - mean) * scale, -10, 10)
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        x = jnp.tanh(x @ weight + bias[0])
    return x * reach


@jax.jit
def _act_all(layers: Layers, reach: jax.Array, mean: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the actions of all envs, [num_envs, A]."""
    return jax.vmap(_act, in_axes=(0, None, None, None, 0))(layers, reach, mean, scale, x)


@partial(jax.jit, donate_argnums=0)
def _load(layers: Layers, place: int, weights: Layers) -> Layers:
    return [layer.at[place].set(weight) for layer, weight in zip(layers, weights, strict=True)]


@partial(jax.jit, donate_argnums=0)
def _move(layers: Layers, source: int, target: int) -> Layers:
    return [layer.at[target].set(layer[source]) for layer in layers]


class JaxPolicies:
    """Policies of a worker's envs, whose weights stay where jax has them."""

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any], num_envs: int) -> None:
        self._shapes = layer_shapes(observations, actions)
        self._slices = layer_slices(self._shapes)
        self._layers = [jnp.zeros((num_envs, *shape)) for shape in self._shapes]
        self._reach = jnp.asarray(action_reach(actions))

    def load(self, place: int, weights: Floats) -> None:
        parts = [weights[s].reshape(shape) for s, shape in zip(self._slices, self._shapes, strict=True)]
        self._layers = _load(self._layers, place, parts)

    def move(self, source: int, target: int) -> None:
        self._layers = _move(self._layers, source, target)

    def normalize(self, mean: Floats, scale: Floats) -> None:
        self._mean, self._scale = jnp.asarray(mean), jnp.asarray(scale)

    def act(self, observations: Floats, live: int) -> Floats:
        # All envs, the idle ones too: another shape would be compiled anew.
        return np.asarray(_act_all(self._layers, self._reach, self._mean, self._scale, observations))


def measure(job: Job) -> Measurement:
    """Measures evosax."""
    settings = job.settings(BEST)
    center = jnp.asarray(initial_weights(job.task, job.seed))
    with EpisodePool(
        job.task,
        MAX_EPISODE_STEPS,
        JaxPolicies,
        population_size=job.population_size,
        num_weights=len(center),
        seed=job.seed,
        **settings,
    ) as pool:
        es = Open_ES(
            job.population_size,
            center,
            use_antithetic_sampling=True,
            optimizer=optax.adam(LEARNING_RATE),
            std_schedule=optax.constant_schedule(SIGMA),
        )
        params = es.default_params
        key = jax.random.key(job.seed)
        state = es.init(key, center, params)

        def run_generation() -> tuple[int, int]:
            nonlocal key, state
            key, ask, tell = jax.random.split(key, 3)
            population, state = es.ask(ask, state, params)
            returns, lengths = pool.evaluate(np.asarray(population))
            state, _ = es.tell(tell, population, jnp.asarray(-returns, jnp.float32), state, params)
            return int(lengths.sum()), len(lengths)

        # ask and tell are compiled anew in the second generation: the types of the first state are weak.
        return time_generations(run_generation, job.seconds, settings, warm_up=2)


if __name__ == "__main__":
    main(measure, ["evosax", "jax", "jaxlib", "gymnasium", "mujoco", "numpy"])
