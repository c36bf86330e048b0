"""From a configuration, or from environments, to the evaluator of populations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from gymnasium.vector import VectorEnv
from torch import nn

from es_flipout.config import Config
from es_flipout.envs import make_env, make_vec
from es_flipout.envs.engine import available_cores
from es_flipout.envs.mujoco import MujocoVectorEnv
from es_flipout.envs.registration import native_maker, official_id, runs_natively
from es_flipout.envs.slots import SlotVectorEnv
from es_flipout.envs.warp import WarpEngine
from es_flipout.evaluators.on_device import OnDeviceEvaluator
from es_flipout.evaluators.placement import place
from es_flipout.evaluators.process_pool import ProcessPoolEvaluator
from es_flipout.evaluators.results import Evaluation
from es_flipout.evaluators.rollout import GymnasiumRollout
from es_flipout.evaluators.seeds import reset_seeds as draw_reset_seeds
from es_flipout.evaluators.sharded import ShardedEvaluator
from es_flipout.evaluators.vectorized import VectorizedEvaluator
from es_flipout.evaluators.worker_pool import WorkerError
from es_flipout.population import Population

MIN_SLOTS = 16
"""Fewest slots that are worth a process, or a tile, of their own."""


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


def make_probe(config: Config) -> SlotVectorEnv:
    """Makes an environment of one row, for its spaces and to try things in.

    Raises:
        ValueError: if it cannot be made as configured.
    """
    config, _ = place(config)
    env = config.env
    native = config.backend == "vectorized" and runs_natively(env.id, env.engine, env.wrappers)
    return make_vec(
        env.id,
        1,
        device=config.device,
        engine=env.engine if native else "gymnasium",
        engine_kwargs=env.engine_kwargs,
        threads=1,
        wrappers=env.wrappers,
        **env.kwargs,
    )


def make_evaluator(config: Config, policy: nn.Module) -> PopulationEvaluator:
    """Makes the evaluator of a configuration.

    Native tasks are shared out over processes, one a core, with `MIN_SLOTS` slots or more in each. On engine
    "warp" all is on the device. If only the policy is on a GPU, all slots are in this process, in two tiles,
    so that the policy runs for one while the other is in its physics. Other environments would gain nothing
    from either.

    Args:
        config: the backend, environment, slots, threads and devices; `place` decides on what is auto.
        policy: the policy whose populations it is to evaluate.

    Raises:
        ValueError: if environments cannot be made, or workers cannot start.
    """
    config, _ = place(config)
    env, threads = config.env, num_threads(config)
    try:
        if config.backend == "process_pool":
            make = partial(
                make_env, official_id(env.id), env.wrappers, disable_env_checker=True, **env.kwargs
            )
            return ProcessPoolEvaluator(policy, partial(GymnasiumRollout, make), num_workers=threads)
        num_slots = min(env.num_slots, config.es.population_size * config.rollout.episodes)
        if not runs_natively(env.id, env.engine, env.wrappers):
            return VectorizedEvaluator(
                make_vec(
                    env.id,
                    num_slots,
                    device=config.device,
                    engine=env.engine,
                    engine_kwargs=env.engine_kwargs,
                    threads=threads,
                    wrappers=env.wrappers,
                    **env.kwargs,
                )
            )
        make_native = partial(
            native_maker(env.id, **env.kwargs),
            engine=env.engine,
            engine_kwargs=env.engine_kwargs,
            info=False,
        )
        if env.engine == "warp":
            num_bases = config.es.num_bases if config.es.perturbation == "flipout" else 1
            num_slots = max(num_slots // num_bases, 1) * num_bases  # as many for each base
            return OnDeviceEvaluator(make_native(num_slots, device=config.device))
        parts = max(min(threads, num_slots // MIN_SLOTS), 1)
        if config.device != "cpu":
            parts = min(parts, 2)
            sizes = [(num_slots + index) // parts for index in range(parts)]
            tiles = [make_native(size, device=config.device, threads=threads // parts) for size in sizes]
            return VectorizedEvaluator(*tiles)
        if parts > 1:
            make_shard = partial(make_native, math.ceil(num_slots / parts), threads=threads // parts)
            with contextlib.suppress(ValueError, WorkerError):  # of a policy that no process can be sent
                return ShardedEvaluator(policy, make_shard, parts)
        return VectorizedEvaluator(make_native(num_slots, threads=threads))
    except WorkerError as error:
        raise ValueError(f"{env.id}: {error}") from error


def evaluate(
    population: Population,
    envs: VectorEnv[Any, Any, Any] | Sequence[VectorEnv[Any, Any, Any]],
    *,
    episodes: int = 1,
    reset_seeds: Sequence[int] | Sequence[Sequence[int]] | None = None,
    episode_limit: int | None = None,
) -> Evaluation:
    """Rolls every member of a population out, in one vector environment or several of the same task.

    A single environment on engine "warp" plays without leaving its device.

    Args:
        population: the members.
        envs: see `VectorizedEvaluator`; the number of their rows may be any (on engine "warp" a multiple of
            the number of bases).
        episodes: episodes a member.
        reset_seeds: seed of each episode, [P, E]. None draws fresh ones in every generation, from the
            strategy's seed; antithetic pairs then start from the same states.
        episode_limit: env steps after which an episode is cut off; None for the environment's own limit.

    Returns:
        Among others the fitness, for `FlipoutES.tell`, and the moments of what was observed, for
        `ObservationNormalizer.merge`.

    Raises:
        ValueError: as `VectorizedEvaluator.evaluate` does.
    """
    if reset_seeds is None:
        origin = population.origin
        reset_seeds = draw_reset_seeds(
            population.size,
            episodes,
            seed=origin.seed if origin else 0,
            generation=origin.generation if origin else 0,
            block=origin.block if origin else 0,
            pairs_share=population.noise.antithetic,
        )
    evaluator: PopulationEvaluator
    if isinstance(envs, MujocoVectorEnv) and isinstance(envs.engine, WarpEngine):
        evaluator = OnDeviceEvaluator.of(envs)
    else:
        evaluator = VectorizedEvaluator(*([envs] if isinstance(envs, VectorEnv) else envs))
    return evaluator.evaluate(population, reset_seeds, episode_limit=episode_limit)
