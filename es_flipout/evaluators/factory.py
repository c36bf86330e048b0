"""From a configuration to the evaluator of its populations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import nn

from es_flipout.config import Config
from es_flipout.envs import make_env, make_vec
from es_flipout.envs.engine import available_cores
from es_flipout.envs.registration import official_id, runs_natively
from es_flipout.envs.slots import SlotVectorEnv
from es_flipout.evaluators.process_pool import ProcessPoolEvaluator, WorkerError
from es_flipout.evaluators.results import Evaluation
from es_flipout.evaluators.rollout import GymnasiumRollout
from es_flipout.evaluators.vectorized import VectorizedEvaluator
from es_flipout.population import Population

MIN_TILE = 16
"""Fewest slots that are worth stepping by themselves."""


class PopulationEvaluator(Protocol):
    """From a population to what came of its rollouts; see `VectorizedEvaluator.evaluate`."""

    def evaluate(
        self,
        population: Population,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]],
        *,
        episode_limit: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Plays the episodes of every member."""

    def close(self) -> None:
        """Ends whatever it has started."""


def num_threads(config: Config) -> int:
    """Returns how many threads or processes do the work."""
    return config.threads or available_cores()


def make_envs(config: Config) -> list[SlotVectorEnv]:
    """Makes the environments that the evaluator steps in this process, in two halves if they are native.

    Each half has half of the threads, so that the policy runs for one while the other is in its physics.
    Environments that hold this process up while they step would gain nothing from it. A process pool has its
    own; then there is one of one row, for its spaces and to try things in.
    """
    env, threads = config.env, num_threads(config)
    num_slots = min(env.num_slots, config.es.population_size * config.rollout.episodes)
    engine = env.engine
    if config.backend == "process_pool":
        num_slots, engine = 1, "gymnasium"
    halved = runs_natively(env.id, engine, env.wrappers) and num_slots >= 2 * MIN_TILE
    sizes = [(num_slots, threads)]
    if halved:
        sizes = [(num_slots - num_slots // 2, threads - threads // 2), (num_slots // 2, threads // 2)]
    return [
        make_vec(
            env.id,
            slots,
            device=config.device,
            engine=engine,
            threads=max(share, 1),
            info=False,
            wrappers=env.wrappers,
            **env.kwargs,
        )
        for slots, share in sizes
    ]


def make_evaluator(config: Config, envs: Sequence[SlotVectorEnv], policy: nn.Module) -> PopulationEvaluator:
    """Makes the evaluator.

    Args:
        config: whose backend it is.
        envs: what `make_envs` made of the same configuration.
        policy: the policy whose populations it is to evaluate.

    Raises:
        ValueError: if the workers of a process pool cannot start.
    """
    if config.backend == "vectorized":
        return VectorizedEvaluator(*envs, concurrent=num_threads(config) > 1)
    env = config.env
    make = partial(make_env, official_id(env.id), env.wrappers, disable_env_checker=True, **env.kwargs)
    try:
        return ProcessPoolEvaluator(policy, partial(GymnasiumRollout, make), num_workers=num_threads(config))
    except WorkerError as error:
        raise ValueError(f"{env.id}: {error}") from error
