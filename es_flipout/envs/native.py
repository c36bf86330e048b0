"""The native MuJoCo tasks by id, here and in Gymnasium: those of this package and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

from es_flipout.envs.gymnasium_ids import NAMESPACE
from es_flipout.envs.keyword_arguments import check_keywords, keyword_hint
from es_flipout.envs.known_ids import import_module_of
from es_flipout.envs.mujoco import TASKS
from es_flipout.envs.mujoco.checked_starts import is_randomizable
from es_flipout.envs.mujoco.make_engine import ENGINES, cpu_engine
from es_flipout.envs.mujoco.single_env import MujocoSingleEnv
from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.task_error import TaskError
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv
from es_flipout.envs.numpy_vector_env import NumpyVectorEnv
from es_flipout.envs.time_limit import DEFAULT_EPISODE_STEPS, check_limit
from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.named_spec import NamedSpec

RENDERING_KEYWORDS = frozenset({"render_mode", *MujocoSingleEnv.VIEW_KEYWORDS})
"""Keyword arguments of Gymnasium's MuJoCo environments that do not touch physics, reward or observation."""

_native: dict[str, tuple[Callable[..., MujocoTask], int | None]] = {}


def register_task(
    env_id: str, task: Callable[..., MujocoTask], *, max_episode_steps: int | None = None
) -> None:
    """Registers a MuJoCo task under an id, here and in Gymnasium.

    Afterwards `make_vec(env_id, ...)`, `gymnasium.make(env_id)`, `gymnasium.make_vec(env_id, ...)` and the
    `env.id` of a configuration know it. For a configuration or another process to find it, put the call into
    a module and write the id as MODULE:ID.

    Args:
        env_id: an id in Gymnasium's form, such as Reach-v0.
        task: the `MujocoTask` subclass; its keyword arguments are the environment's.
        max_episode_steps: env steps after which an episode is truncated. None for no limit, to which
            `make_vec` adds one of `DEFAULT_EPISODE_STEPS`.
    """
    _native[env_id] = task, max_episode_steps
    gym.register(
        id=env_id,
        entry_point=partial(make_single_env, task),
        vector_entry_point=partial(make_numpy_vec, env_id, task),
        max_episode_steps=max_episode_steps,
    )


def native_maker(env_id: str, **kwargs: Any) -> Callable[..., MujocoVectorEnv]:
    """Returns a function that makes native environments of a task.

    Pickled by cloudpickle, it works in other processes too.

    Args:
        env_id: as for `make_vec`; the task must run natively (`runs_natively`).
        **kwargs: keyword arguments as for `gymnasium.make(env_id, ...)`.

    Returns:
        A function of `num_envs` and, by keyword, device, engine, engine_kwargs, dtype, threads, info, fused
        and randomize; see `make_vec`.
    """
    name = import_module_of(env_id)
    task, limit = _native[_native_name(name)]
    if kwargs.get("max_episode_steps") is None:
        kwargs["max_episode_steps"] = limit
    return partial(_make_native, name, task, default_limit=DEFAULT_EPISODE_STEPS, **kwargs)


def runs_natively(env_id: str, engine: str = "auto", wrappers: Sequence[NamedSpec] = ()) -> bool:
    """Returns whether `make_vec`, given the same arguments, makes a `MujocoVectorEnv`."""
    known = _native_name(import_module_of(env_id)) in _native
    return known and not wrappers and engine in ("auto", *ENGINES)


def cpu_engine_of(env_id: str, **kwargs: Any) -> Literal["batch", "mjdata_pool"]:
    """Returns the fastest engine on the CPU for a task that `runs_natively`, given its keyword arguments."""
    name = _native_name(import_module_of(env_id))
    kwargs.pop("max_episode_steps", None)
    return cpu_engine(_make_task(name, _native[name][0], _without_view(kwargs)))


def is_exact(env_id: str, **kwargs: Any) -> bool:
    """Returns `MujocoTask.is_exact` of a task that `runs_natively`, given its keyword arguments.

    Raises:
        ValueError: if it does not know one of them.
    """
    name = _native_name(import_module_of(env_id))
    kwargs.pop("max_episode_steps", None)
    return _make_task(name, _native[name][0], _without_view(kwargs)).is_exact


def can_randomize(env_id: str, **kwargs: Any) -> bool:
    """Returns whether an id is that of a task with a randomization, given its keyword arguments.

    Those that the task does not have are left out: they may be those of `gymnasium.make` itself.

    Raises:
        ValueError: if it is a task and cannot be made.
    """
    name = _native_name(import_module_of(env_id))
    if name not in _native:
        return False
    task, _ = _native[name]
    known = {key: kwargs[key] for key in inspect.signature(task).parameters if key in kwargs}
    return is_randomizable(_make_task(name, task, known))


def official_id(env_id: str) -> str:
    """Returns the id of Gymnasium's own environment, given that or the id of its native version."""
    name = env_id.removeprefix(NAMESPACE)
    return name if name in TASKS else env_id


def native_ids() -> list[str]:
    """Returns the ids of all native tasks, sorted."""
    return sorted(_native)


def _native_name(name: str) -> str:
    return name if name in _native else name.removeprefix(NAMESPACE)


def _without_view(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in RENDERING_KEYWORDS}


def _make_task(env_id: str, task: Callable[..., MujocoTask], kwargs: dict[str, Any]) -> MujocoTask:
    check_keywords(env_id, kwargs)
    allowed = list(inspect.signature(task).parameters)
    for name in kwargs:
        if name not in allowed:
            raise ValueError(
                f"{env_id} has no keyword argument {name!r}; allowed: {', '.join(allowed)}, max_episode_steps"
            )
    try:
        return task(**kwargs)
    except FOREIGN as error:
        raise EnvFault(f"{env_id}: {error_text(error)}{keyword_hint(kwargs)}") from error


def _make_native(
    env_id: str,
    task: Callable[..., MujocoTask],
    num_envs: int,
    *,
    max_episode_steps: int | None = None,
    default_limit: int | None = None,
    device: torch.device | str = "cpu",
    engine: Any = "auto",
    engine_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    info: bool = True,
    fused: bool = True,
    randomize: bool = False,
    **kwargs: Any,
) -> MujocoVectorEnv:
    check_limit(max_episode_steps)
    limit = default_limit if max_episode_steps is None else max_episode_steps
    made = _make_task(env_id, task, _without_view(kwargs))
    try:
        env = MujocoVectorEnv(
            made,
            num_envs,
            max_episode_steps=None if limit == -1 else limit,
            device=device,
            dtype=dtype,
            engine=engine,
            engine_kwargs=engine_kwargs,
            threads=threads,
            info=info,
            fused=fused,
            randomize=randomize,
        )
    except TaskError as error:
        raise EnvFault(f"{env_id}: {error}") from error
    env.default_limit = default_limit if max_episode_steps is None else None
    return env


def make_numpy_vec(
    env_id: str,
    task: Callable[..., MujocoTask],
    num_envs: int,
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **kwargs: Any,
) -> NumpyVectorEnv:
    """Makes what `gymnasium.make_vec` returns for a task; it gets NumPy actions and returns NumPy arrays."""
    return NumpyVectorEnv(_make_native(env_id, task, num_envs, **kwargs), autoreset_mode)


def make_single_env(
    task: Callable[..., MujocoTask],
    *,
    render_mode: str | None = None,
    randomize: bool = False,
    **kwargs: Any,
) -> MujocoSingleEnv:
    """Makes what `gymnasium.make` returns for a task."""
    view = {name: kwargs[name] for name in MujocoSingleEnv.VIEW_KEYWORDS if name in kwargs}
    made = task(**_without_view(kwargs))
    return MujocoSingleEnv(made, render_mode=render_mode, randomize=randomize, **view)


for _env_id, _task in TASKS.items():
    _native[_env_id] = _task, gym.spec(_env_id).max_episode_steps
