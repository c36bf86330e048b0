"""One call from a population to its fitness, in any vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.foreign import torch_vector_env
from es_flipout.envs.mujoco import MujocoVectorEnv
from es_flipout.population import Population
from es_flipout.rollout.device import DevicePlayer
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.host import HostPlayer
from es_flipout.rollout.player import Player
from es_flipout.rollout.seeds import reset_seeds as draw_reset_seeds


def evaluate(
    population: Population,
    envs: VectorEnv[Any, Any, Any] | Sequence[VectorEnv[Any, Any, Any]],
    *,
    episodes: int = 1,
    reset_seeds: Sequence[int] | Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
    episode_limit: int | None = None,
    action_noise: float = 0.0,
) -> Episodes:
    """Plays episodes of every member of a population, in one vector environment or several of the same task.

    A single environment on engine "warp" plays without leaving its device.

    Args:
        population: the members.
        envs: see `HostPlayer`; the number of envs may be any (on engine "warp" a multiple of the number of
            bases).
        episodes: episodes per member.
        reset_seeds: seed of each episode, [P, E], or [P] for one episode per member. None draws fresh ones in
            every generation, from the strategy's seed; antithetic pairs then start from the same states.
        episode_limit: env steps after which an episode is cut off; None for the environment's own limit.
        action_noise: standard deviation of Gaussian noise on every action, in units of the action; what comes
            of it is clipped to the action space. Actions must be a Box of floats.

    Returns:
        The table of what came of them: among others `fitness`, for `FlipoutES.tell`, and `observations()`,
        for `ObservationNormalizer.merge`.

    Raises:
        PlayError: if the environment cannot run on its device; see `DevicePlayer`.
        TypeError: if it is no vector environment.
        ValueError: if there are not as many seeds for each member, or a limit is wanted of environments that
            cannot be reset at any time, or noise on actions that are not a Box of floats.
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
    table = Episodes.of_population(reset_seeds, limit=episode_limit, action_noise=action_noise)
    if table.num_members != population.size:
        raise ValueError(f"reset seeds of {table.num_members} members for a population of {population.size}")
    player: Player
    several = [torch_vector_env(env) for env in (envs if isinstance(envs, list | tuple) else [envs])]
    if (
        len(several) == 1
        and isinstance(env := several[0], MujocoVectorEnv)
        and isinstance(env.engine, WarpEngine)
    ):
        player = DevicePlayer.of(env)
    else:
        player = HostPlayer(*several)
    return player.play(population, table)
