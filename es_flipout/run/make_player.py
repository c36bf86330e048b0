"""What plays the episodes of populations, as configured: which player, with how many envs and processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from functools import partial

from torch import nn

from es_flipout.envs import make_vec
from es_flipout.envs.native import native_maker, runs_natively
from es_flipout.processes import prepare_processes
from es_flipout.rollout import (
    BaselinePlayer,
    DevicePlayer,
    GymnasiumRollout,
    HostPlayer,
    Player,
    PlayError,
    RankPlayer,
    Ranks,
    WorkerPlayer,
)
from es_flipout.rollout.mlp_rows import rows_are_independent
from es_flipout.rollout.player import COMPANIES
from es_flipout.rollout.rank_contract import ALONE
from es_flipout.run.build import is_randomized, num_threads, official_maker
from es_flipout.run.config import Config
from es_flipout.run.onlooker import NOBODY, Onlooker

MIN_ENVS = 2
"""Fewest envs that are worth a process, or a vector environment, of their own."""
EPISODES_PER_ENV = 4
"""Fewest episodes that an env should play in a generation of several ranks, so that a rank can take more."""


def num_envs_of(config: Config, policy: nn.Module, ranks: Ranks) -> int:
    """Returns how many envs are stepped together on this rank.

    If episodes are dealt out to several ranks, none has more envs than episodes. If they are claimed, ranks
    have few enough that all have something to claim while the last episodes are played. But if it matters who
    plays beside whom, a company has the same envs however many there are to play it.
    """
    most = config.es.population_size * config.rollout.episodes
    if config.device != "cpu" or config.env.engine == "warp":
        most = math.ceil(most / ranks.size)
    elif not rows_are_independent(policy):
        return math.ceil(min(config.env.num_envs, most) / COMPANIES)
    elif ranks.size > 1:
        most = max(most // (EPISODES_PER_ENV * ranks.size), 1)
    return min(config.env.num_envs, most)


def make_player(
    config: Config,
    policy: nn.Module,
    announce: Callable[[str], None] = lambda line: None,
    ranks: Ranks = ALONE,
    onlooker: Onlooker = NOBODY,
) -> Player:
    """Makes what plays the episodes of populations, together with other ranks if there are any."""
    player = _make_player(config, policy, announce, ranks, onlooker)
    return player if ranks.size == 1 else RankPlayer(player, ranks)


def _make_player(
    config: Config, policy: nn.Module, announce: Callable[[str], None], ranks: Ranks, onlooker: Onlooker
) -> Player:
    """Makes what plays the episodes of this rank.

    Native tasks are shared out over processes, one per core, with `MIN_ENVS` envs or more in each. On engine
    "warp" everything is on the device. If only the policy is on a GPU, all envs are in this process, in two
    vector environments, so that the policy runs for one while the other is in its physics. Other environments
    would gain nothing from either.

    Args:
        config: with its devices decided.
        policy: the policy whose populations are to be played.
        announce: is told what makes it slower than it could be.
        ranks: of the run.
        onlooker: is told what takes long.

    Raises:
        ValueError: if environments cannot be made, or workers cannot start.
    """
    env, threads = config.env, num_threads(config, ranks)
    try:
        is_native = runs_natively(env.id, env.engine, env.wrappers)
        if config.backend == "process_pool" and not is_native:
            make = official_maker(env, randomize=is_randomized(env))
            with onlooker.doing(_starting(threads)):
                return BaselinePlayer(policy, partial(GymnasiumRollout, make), num_workers=threads)
        num_envs = num_envs_of(config, policy, ranks)
        plays_in_companies = config.device == "cpu" and not rows_are_independent(policy)
        if not is_native:
            envs = make_vec(
                env.id,
                num_envs,
                device=config.device,
                engine=env.engine,
                engine_kwargs=env.engine_kwargs,
                threads=threads,
                randomize=env.randomize,
                wrappers=env.wrappers,
                reward_weights=env.reward_weights,
                **env.kwargs,
            )
            return HostPlayer(envs, in_companies=plays_in_companies)
        make_native = partial(
            native_maker(env.id, **env.kwargs),
            engine=env.engine,
            engine_kwargs=env.engine_kwargs,
            info=False,
            fused=env.fused == "auto",
            randomize=env.randomize,
        )
        size = 1 if config.backend == "process_pool" else min(num_envs, MIN_ENVS)
        if env.fused == "auto" and env.engine != "warp":
            if threads > 1:
                prepare_processes()  # which takes as long as what follows
            # Compiles the hooks for all processes; those of one env have arrays of another layout.
            compiling = onlooker.doing(f"compiling the step of {env.id}")
            with compiling, closing(make_native(size, threads=1)) as some:
                if some.not_fused:
                    announce(f"{env.id} is not compiled, so that it runs more slowly: {some.not_fused}")
        if config.backend == "process_pool":
            with onlooker.doing(_starting(threads)):
                return WorkerPlayer.of_envs(policy, partial(make_native, 1, threads=1), threads)
        if env.engine == "warp":
            num_bases = config.es.num_bases if config.es.perturbation == "flipout" else 1
            num_envs = max(num_envs // num_bases, 1) * num_bases  # as many for each base
            player = DevicePlayer(make_native(num_envs, device=config.device))
            with onlooker.doing("compiling the kernels of mujoco_warp"):
                player.prepare()
            return player
        parts = max(min(threads, num_envs // MIN_ENVS), 1)
        if config.device != "cpu":
            parts = min(parts, 2)
            sizes = [(num_envs + index) // parts for index in range(parts)]
            return HostPlayer(
                *(make_native(size, device=config.device, threads=threads // parts) for size in sizes)
            )
        size = math.ceil(num_envs / parts)
        if plays_in_companies:  # each by one worker
            parts, size = min(threads, COMPANIES), num_envs
        if parts > 1:
            make_envs = partial(make_native, size, threads=threads // parts)
            try:
                with onlooker.doing(_starting(parts)):
                    return WorkerPlayer.of_envs(policy, make_envs, parts)
            except (ValueError, PlayError) as error:
                announce(f"all envs are in this process, which is slower: {error}")
        return HostPlayer(make_native(num_envs, threads=threads), in_companies=plays_in_companies)
    except PlayError as error:
        raise ValueError(f"{env.id}: {error}") from error


def _starting(num_workers: int) -> str:
    return f"starting {num_workers} worker process{'' if num_workers == 1 else 'es'}"
