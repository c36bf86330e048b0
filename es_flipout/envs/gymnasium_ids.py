"""The native tasks under ids of Gymnasium's registry: `gymnasium.make_vec("es_flipout/Ant-v5", ...)`.

They are registered when the package is imported. What makes them, and torch, is imported when one is made.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym

NAMESPACE = "es_flipout/"
"""Gymnasium namespace of the native versions of its own tasks."""
NATIVE_IDS = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
"""Gymnasium's own ids of the native tasks."""


def register_native_ids() -> None:
    """Registers every native task in Gymnasium, with the time limit of its own."""
    for name in NATIVE_IDS:
        gym.register(
            id=NAMESPACE + name,
            entry_point=partial(_make_single, name),
            vector_entry_point=partial(_make_vec, name),
            max_episode_steps=gym.spec(name).max_episode_steps,
        )


def _make_single(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    from es_flipout.envs.mujoco import TASKS
    from es_flipout.envs.native import make_single_env

    return make_single_env(TASKS[name], **kwargs)


def _make_vec(name: str, num_envs: int, **kwargs: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    from es_flipout.envs.mujoco import TASKS
    from es_flipout.envs.native import make_numpy_vec

    return make_numpy_vec(NAMESPACE + name, TASKS[name], num_envs, **kwargs)
