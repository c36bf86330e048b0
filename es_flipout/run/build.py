"""From a configuration, or from environments, to the evaluator of populations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from es_flipout import optimizers, policies
from es_flipout.envs import make_env, make_vec
from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.mujoco import MujocoVectorEnv
from es_flipout.envs.native import native_maker, official_id, runs_natively
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.population import Population
from es_flipout.processes import available_cores
from es_flipout.rollout.baseline import ProcessPoolEvaluator
from es_flipout.rollout.device import OnDeviceEvaluator
from es_flipout.rollout.episodes import Evaluation
from es_flipout.rollout.host import VectorizedEvaluator
from es_flipout.rollout.seeds import reset_seeds as draw_reset_seeds
from es_flipout.rollout.sharded import ShardedEvaluator
from es_flipout.rollout.single_env import GymnasiumRollout
from es_flipout.rollout.workers import WorkerError
from es_flipout.run.config import Config, ESConfig, OptimizerConfig, PolicyConfig
from es_flipout.run.placement import place


def make_policy(
    config: PolicyConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds the configured policy; see `policies.make_policy`."""
    settings = {each.name: getattr(config, each.name) for each in fields(config)}
    kind, kwargs = settings.pop("kind"), settings.pop("kwargs")
    return policies.make_policy(
        kind, observation_space, action_space, settings=settings, kwargs=kwargs, generator=generator
    )


def make_optimizer(config: OptimizerConfig, policy: nn.Module) -> torch.optim.Optimizer:
    """Builds the configured optimizer; see `optimizers.make_optimizer`."""
    return optimizers.make_optimizer(config.name, policy, lr=config.lr, kwargs=config.kwargs)


def make_perturbation(config: ESConfig) -> Perturbation:
    """Builds the configured noise family."""
    if config.perturbation == "independent":
        return Independent()
    if config.perturbation == "low_rank":
        return LowRank(config.rank)
    return Flipout(config.num_bases, config.base)


MIN_ENVS = 16
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


def make_probe(config: Config) -> TorchVectorEnv:
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

    Native tasks are shared out over processes, one a core, with `MIN_ENVS` slots or more in each. On engine
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
        num_envs = min(env.num_envs, config.es.population_size * config.rollout.episodes)
        if not runs_natively(env.id, env.engine, env.wrappers):
            return VectorizedEvaluator(
                make_vec(
                    env.id,
                    num_envs,
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
            num_envs = max(num_envs // num_bases, 1) * num_bases  # as many for each base
            return OnDeviceEvaluator(make_native(num_envs, device=config.device))
        parts = max(min(threads, num_envs // MIN_ENVS), 1)
        if config.device != "cpu":
            parts = min(parts, 2)
            sizes = [(num_envs + index) // parts for index in range(parts)]
            tiles = [make_native(size, device=config.device, threads=threads // parts) for size in sizes]
            return VectorizedEvaluator(*tiles)
        if parts > 1:
            make_shard = partial(make_native, math.ceil(num_envs / parts), threads=threads // parts)
            with contextlib.suppress(ValueError, WorkerError):  # of a policy that no process can be sent
                return ShardedEvaluator(policy, make_shard, parts)
        return VectorizedEvaluator(make_native(num_envs, threads=threads))
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
