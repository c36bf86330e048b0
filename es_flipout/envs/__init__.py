"""Environments: everything that members are rolled out in is a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

import gymnasium as gym
import torch

from es_flipout.envs.mujoco import TASKS, MujocoTask, MujocoVectorEnv

__all__ = ["TASKS", "MujocoTask", "MujocoVectorEnv", "make_vec"]

RENDERING_KEYWORDS = frozenset(
    {"default_camera_config", "width", "height", "camera_id", "camera_name", "max_geom", "visual_options"}
)
"""Keyword arguments of Gymnasium's MuJoCo environments that do not touch physics, reward or observation."""


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    **kwargs: Any,
) -> MujocoVectorEnv:
    """Makes a native vector environment that equals Gymnasium's `env_id` row by row.

    Args:
        env_id: Gymnasium id of a task in `TASKS`.
        num_envs: number of rows N.
        device: device of the tensors that it returns.
        dtype: floating dtype of observations and rewards.
        threads: physics threads; every available core if None.
        **kwargs: keyword arguments as for `gymnasium.make(env_id, ...)`: the task's own, and
            `max_episode_steps` (-1: no limit). Those of rendering are accepted and unused.

    Raises:
        ValueError: if the id, a keyword argument or a value is not valid; the message says what is.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be >= 1, got {num_envs}")
    task_class = _find_task(env_id)
    limit = kwargs.pop("max_episode_steps", None)
    if limit is None:
        limit = gym.spec(env_id).max_episode_steps
    elif not isinstance(limit, int) or (limit != -1 and limit < 1):
        raise ValueError(f"max_episode_steps must be an integer >= 1, or -1 for no limit, got {limit}")
    task_kwargs = {name: value for name, value in kwargs.items() if name not in RENDERING_KEYWORDS}
    allowed = list(inspect.signature(task_class).parameters)
    for name in task_kwargs:
        if name not in allowed:
            raise ValueError(
                f"{env_id} has no keyword argument {name!r}; allowed: {', '.join(allowed)}, max_episode_steps"
            )
    try:
        task = task_class(**task_kwargs)
    except (OSError, TypeError, AttributeError) as error:
        raise ValueError(f"{env_id}: {error}") from error
    return MujocoVectorEnv(
        task,
        num_envs,
        max_episode_steps=None if limit == -1 else limit,
        device=device,
        dtype=dtype,
        threads=threads,
    )


def _find_task(env_id: str) -> type[MujocoTask]:
    if env_id in TASKS:
        return TASKS[env_id]
    native = ", ".join(sorted(TASKS))
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, TASKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown environment {env_id!r}{hint} (available: {native})")
    action_space = _action_space(env_id)
    if action_space is None or isinstance(action_space, gym.spaces.Box):
        raise ValueError(f"{env_id} is not available natively (available: {native})")
    raise ValueError(
        f"{env_id} has the discrete action space {action_space}, but policies give continuous actions; "
        f"available environments: {native}"
    )


def _action_space(env_id: str) -> gym.Space[Any] | None:
    """Returns the action space of a registered environment, None if it cannot be made here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gym.make(env_id)
    except (gym.error.Error, ImportError):
        return None
    env.close()
    return env.action_space
