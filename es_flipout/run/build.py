"""From a configuration to what it describes: policy, strategy, noise, environments, scorers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from es_flipout import optimizers, policies
from es_flipout.envs import make_env, make_vec
from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.envs.mujoco import TASKS
from es_flipout.envs.native import can_randomize, is_exact, native_maker, official_id, runs_natively
from es_flipout.perturbations import (
    ComputeTiles,
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    compute_here,
)
from es_flipout.processes import available_cores
from es_flipout.rollout import (
    BackgroundScorer,
    QuickScorer,
    Ranks,
    Scorer,
)
from es_flipout.rollout.rank_contract import ALONE
from es_flipout.rollout.score_info import entries_of
from es_flipout.run.config import (
    Config,
    EnvConfig,
    ESConfig,
    OptimizerConfig,
    PolicyConfig,
    SigmaAdaptationConfig,
)
from es_flipout.sigma_adaptation import SigmaAdaptation
from es_flipout.strategy import FlipoutES


def make_policy(
    config: PolicyConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds the configured policy; see `policies.make_policy`."""
    settings = {each.name: getattr(config, each.name) for each in fields(config)}
    kind, kwargs, stack = (settings.pop(name) for name in ("kind", "kwargs", "observation_stack"))
    return policies.make_policy(
        kind,
        observation_space,
        action_space,
        settings=settings,
        kwargs=kwargs,
        observation_stack=stack,
        generator=generator,
    )


def make_strategy(config: Config, policy: nn.Module, compute_tiles: ComputeTiles = compute_here) -> FlipoutES:
    """Builds the configured strategy over a policy; see `FlipoutES`.

    Raises:
        ValueError: if the optimizer cannot be made as configured, or the policy cannot be trained.
    """
    es = config.es
    return FlipoutES(
        policy,
        population_size=es.population_size,
        sigma=es.sigma,
        optimizer=make_optimizer(config.optimizer, policy),
        perturbation=make_perturbation(es),
        fitness_shaping=es.fitness_shaping,
        elite_fraction=es.elite_fraction,
        antithetic=es.antithetic,
        sigma_adaptation=make_adaptation(es.sigma_adaptation),
        weight_decay=es.weight_decay,
        seed=config.seed,
        compute_tiles=compute_tiles,
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


def make_adaptation(config: SigmaAdaptationConfig) -> SigmaAdaptation | None:
    """Builds the configured adaptation of sigma; None for none."""
    return None if config.rule is None else SigmaAdaptation(config.rule, config.lr, config.max_change)


def num_threads(config: Config, ranks: Ranks = ALONE) -> int:
    """Returns how many threads or processes do the work of this rank."""
    return config.threads or max(available_cores() // ranks.local_size, 1)


def make_probe(config: Config) -> TorchVectorEnv:
    """Makes an environment of one env, for its spaces and to try things in.

    Args:
        config: with its device decided.

    Raises:
        ValueError: if it cannot be made as configured.
    """
    env = config.env
    return make_vec(
        env.id,
        1,
        device=config.device,
        engine=env.engine if config.backend == "vectorized" else "gymnasium",
        engine_kwargs=env.engine_kwargs,
        threads=1,
        randomize=env.randomize,
        wrappers=env.wrappers,
        reward_weights=env.reward_weights,
        **env.kwargs,
    )


def is_randomized(config: EnvConfig) -> bool:
    """Returns whether members play randomized episodes: as configured, if the task can."""
    return config.randomize and can_randomize(config.id, **config.kwargs)


def flattening(env_id: str, space: gym.Space[Any], policy: nn.Module) -> str:
    """Returns a line about observations that become vectors; nothing if the policy gets them as they are."""
    if not isinstance(space, policies.FlatBox) or isinstance(policy, policies.StructuredPolicy):
        return ""
    return f"{env_id}: observations {space.short_name} are flattened to {space.shape[0]} numbers"


def official_maker(config: EnvConfig, *, randomize: bool = False) -> Callable[..., gym.Env[Any, Any]]:
    """Returns what makes the official Gymnasium environment; it takes further keyword arguments.

    Args:
        config: of the environment.
        randomize: whether its episodes are randomized; only for a task that can (`is_randomized`).
    """
    settings = {**config.kwargs, "reward_weights": config.reward_weights}
    make = partial(make_env, official_id(config.id), config.wrappers, **settings)
    return partial(make, randomize=True) if randomize else make


def official_scorer(
    config: EnvConfig,
    episodes: int,
    *,
    info: Sequence[str] = (),
    first: gym.Env[Any, Any] | None = None,
    processes: int = 0,
    randomize: bool = False,
) -> Scorer:
    """Makes what scores policies in the official Gymnasium environment.

    Args:
        config: of the environment.
        episodes: episodes per score.
        info: metrics from `info`; see `Scorer`.
        first: environment of the first episode, if it differs, for example because it films.
        processes: how many processes the environments are distributed over; 0 for none but this one.
        randomize: see `official_maker`.

    Raises:
        ValueError: if it cannot be made.
        RuntimeError: if a process cannot make it.
    """
    make = official_maker(config, randomize=randomize)
    envs = GymnasiumVectorEnv(
        make, episodes, dtype=torch.float64, processes=processes, first=first, info=entries_of(info)
    )
    return Scorer(envs, info=info)


def native_scorer(
    config: EnvConfig, episodes: int, *, info: Sequence[str] = (), randomize: bool = False
) -> Scorer:
    """Makes what scores policies in native envs on the CPU, all episodes in one batch; see `has_exact_envs`.

    Raises:
        ValueError: if it cannot be made.
    """
    make = native_maker(config.id, **config.kwargs)
    options = {"dtype": torch.float64, "threads": 1, "info": bool(info), "randomize": randomize}
    # Hooks of the user's own, and norms, may lose a last bit when they are compiled.
    env = make(episodes, **options, fused=config.fused == "auto" and official_id(config.id) in TASKS)
    if env.fused is not None and not env.fused.task.is_exact:
        env.close()
        env = make(episodes, **options, fused=False)
    return Scorer(env, info=info)


def has_exact_envs(config: EnvConfig) -> bool:
    """Returns whether native envs on the CPU equal the official environment to the last bit."""
    try:
        return runs_natively(config.id, config.engine, config.wrappers) and is_exact(
            config.id, **config.kwargs
        )
    except ValueError:  # a keyword argument that gymnasium.make alone knows
        return False


def make_background_scorer(config: Config) -> BackgroundScorer:
    """Makes what scores the center beside training.

    Raises:
        ValueError: if the official environment cannot be made.
    """
    env, episodes, info = config.env, config.evaluation.episodes, config.evaluation.info
    official_scorer(env, 1).close()  # to see that it can be made
    # gymnasium_processes is for environments that one process would be too slow for, or not survive.
    processes = num_threads(config) if env.engine == "gymnasium_processes" else 0
    make_official = partial(official_scorer, env, episodes, info=info, processes=processes)
    is_native = not config.evaluation.official and has_exact_envs(env)
    make_native = partial(native_scorer, env, episodes, info=info) if is_native else None
    randomized = (make_native or make_official) if is_randomized(env) else None
    make_randomized = None if randomized is None else partial(randomized, randomize=True)
    make = partial(QuickScorer, make_official, make_native, make_randomized)
    return BackgroundScorer(make, here=processes > 0)
