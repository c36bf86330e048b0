"""From an id to an environment: native tasks by name, and everything else that Gymnasium knows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal, get_args

import gymnasium as gym
import torch

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.gymnasium import GymnasiumVectorEnv, make_env
from es_flipout.envs.mujoco import TASKS
from es_flipout.envs.mujoco.single_env import MujocoSingleEnv
from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.vector_env import ENGINES, MujocoVectorEnv, cpu_engine

EngineName = Literal["auto", "batch", "mjdata_pool", "warp", "gymnasium", "gymnasium_processes"]

NAMESPACE = "es_flipout/"
"""Gymnasium namespace of the native versions of its own tasks."""
RENDERING_KEYWORDS = frozenset(
    {"default_camera_config", "width", "height", "camera_id", "camera_name", "max_geom", "visual_options"}
)
"""Keyword arguments of Gymnasium's MuJoCo environments that do not touch physics, reward or observation."""

_native: dict[str, tuple[Callable[..., MujocoTask], int | None]] = {}


def register_task(
    env_id: str, task: Callable[..., MujocoTask], *, max_episode_steps: int | None = None
) -> None:
    """Makes a MuJoCo task known by an id, here and in Gymnasium.

    `make_vec(env_id, ...)`, `gymnasium.make(env_id)`, `gymnasium.make_vec(env_id, ...)` and the `env.id` of a
    configuration then all mean it. If another process or a configuration is to find it, let the call stand
    in a module and write the id as MODULE:ID.

    Args:
        env_id: an id as Gymnasium wants it, such as Reach-v0.
        task: the `MujocoTask` subclass; its keyword arguments are the environment's.
        max_episode_steps: env steps after which an episode is truncated; None for no limit.
    """
    _native[env_id] = task, max_episode_steps
    _register_in_gymnasium(env_id, task, max_episode_steps)


def _register_in_gymnasium(env_id: str, task: Callable[..., MujocoTask], limit: int | None) -> None:
    gym.register(
        id=env_id,
        entry_point=partial(_make_single, task),
        vector_entry_point=partial(_make_native, env_id, task),
        max_episode_steps=limit,
    )


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    engine: EngineName = "auto",
    engine_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    info: bool = True,
    wrappers: Sequence[str] = (),
    **kwargs: Any,
) -> TorchVectorEnv:
    """Makes a vector environment of independent rows.

    Args:
        env_id: Gymnasium id, or MODULE:ID to import a module that registers it first. A native version
            equals the official environment row by row.
        num_envs: number of rows N.
        device: device of the tensors that it returns.
        engine: "batch", "mjdata_pool" or "warp" for native MuJoCo tasks (see `MujocoVectorEnv`);
            "gymnasium", the environments of `gymnasium.make` in this process, or "gymnasium_processes",
            shared out over processes (see `GymnasiumVectorEnv`). "auto" takes a native engine on the CPU if
            there is one for the task, and "gymnasium" if not.
        engine_kwargs: keyword arguments of engine "warp"; see `WarpEngine`.
        dtype: floating dtype of observations and rewards.
        threads: physics threads, or processes of "gymnasium_processes"; every available core if None.
        info: whether native environments return the task's info entries; without, they are faster.
        wrappers: around each environment, innermost first: a name in gymnasium.wrappers, or MODULE:CLASS.
            Environments in wrappers are never native.
        **kwargs: keyword arguments as for `gymnasium.make(env_id, ...)`: the environment's own, and
            `max_episode_steps` (-1: no limit).

    Raises:
        ValueError: if the id, a keyword argument or a value is not valid; the message says what is.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be >= 1, got {num_envs}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    if engine not in (engines := get_args(EngineName)):
        raise ValueError(f"engine must be one of {', '.join(engines)}, got {engine!r}")
    if runs_natively(env_id, engine, wrappers):
        make_native = native_maker(env_id, **kwargs)
        return make_native(
            num_envs,
            device=device,
            engine=engine,
            engine_kwargs=engine_kwargs,
            dtype=dtype,
            threads=threads,
            info=info,
        )
    if engine_kwargs:
        raise ValueError(f"engine_kwargs are for engine 'warp', got {dict(engine_kwargs)}")
    name = _import_module_of(env_id)
    if engine in ENGINES:
        raise ValueError(
            f"engine {engine!r} runs native tasks, and {env_id} is none{' in wrappers' if wrappers else ''} "
            f"(native: {', '.join(sorted(_native))})"
        )
    _check_known(name)
    processes = {"gymnasium_processes": threads}.get(engine, 0)
    make = partial(make_env, env_id, wrappers, disable_env_checker=True, **kwargs)
    try:
        return GymnasiumVectorEnv(make, num_envs, device=device, dtype=dtype, processes=processes)
    except (gym.error.Error, TypeError, AttributeError, ImportError, OSError, RuntimeError) as error:
        raise ValueError(f"{env_id}: {error}") from error


def native_maker(env_id: str, **kwargs: Any) -> Callable[..., MujocoVectorEnv]:
    """Returns what makes native environments of a task, here or (pickled by cloudpickle) in another process.

    Args:
        env_id: as for `make_vec`, of a task that `runs_natively`.
        **kwargs: keyword arguments as for `gymnasium.make(env_id, ...)`.

    Returns:
        A function of `num_envs` and, by keyword, device, engine, engine_kwargs, dtype, threads and info; see
        `make_vec`.
    """
    name = _import_module_of(env_id)
    task, limit = _native[_native_name(name)]
    if kwargs.get("max_episode_steps") is None:
        kwargs["max_episode_steps"] = limit
    return partial(_make_native, name, task, **kwargs)


def runs_natively(env_id: str, engine: EngineName = "auto", wrappers: Sequence[str] = ()) -> bool:
    """Returns whether `make_vec`, given the same, makes a `MujocoVectorEnv`."""
    known = _native_name(_import_module_of(env_id)) in _native
    return known and not wrappers and engine in ("auto", *ENGINES)


def cpu_engine_of(env_id: str, **kwargs: Any) -> Literal["batch", "mjdata_pool"]:
    """Returns the fastest engine on the CPU for a task that `runs_natively`, with keyword arguments."""
    name = _native_name(_import_module_of(env_id))
    kwargs.pop("max_episode_steps", None)
    return cpu_engine(_make_task(name, _native[name][0], kwargs))


def official_id(env_id: str) -> str:
    """Returns the id of Gymnasium's own environment, given that or the id of its native version."""
    name = env_id.removeprefix(NAMESPACE)
    return name if name in TASKS else env_id


def _native_name(name: str) -> str:
    return name if name in _native else name.removeprefix(NAMESPACE)


def _import_module_of(env_id: str) -> str:
    """Imports the module of MODULE:ID, and returns the id alone."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            import_module(module)
        except ImportError as error:
            raise ValueError(f"{env_id}: {error}") from error
    return name


def _check_known(env_id: str) -> None:
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, [*_native, *gym.registry], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        native = ", ".join(sorted(_native))
        raise ValueError(
            f"unknown environment {env_id!r}{hint} (native: {native}; and every id registered in Gymnasium)"
        )


def _make_task(env_id: str, task: Callable[..., MujocoTask], kwargs: dict[str, Any]) -> MujocoTask:
    allowed = list(inspect.signature(task).parameters)
    for name in kwargs:
        if name not in allowed:
            raise ValueError(
                f"{env_id} has no keyword argument {name!r}; allowed: {', '.join(allowed)}, max_episode_steps"
            )
    try:
        return task(**kwargs)
    except (OSError, TypeError, AttributeError) as error:
        raise ValueError(f"{env_id}: {error}") from error


def _make_native(
    env_id: str,
    task: Callable[..., MujocoTask],
    num_envs: int,
    *,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    engine: Any = "auto",
    engine_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    info: bool = True,
    **kwargs: Any,
) -> MujocoVectorEnv:
    limit = max_episode_steps
    if limit is not None and (not isinstance(limit, int) or (limit != -1 and limit < 1)):
        raise ValueError(f"max_episode_steps must be an integer >= 1, or -1 for no limit, got {limit}")
    task_kwargs = {name: value for name, value in kwargs.items() if name not in RENDERING_KEYWORDS}
    return MujocoVectorEnv(
        _make_task(env_id, task, task_kwargs),
        num_envs,
        max_episode_steps=None if limit == -1 else limit,
        device=device,
        dtype=dtype,
        engine=engine,
        engine_kwargs=engine_kwargs,
        threads=threads,
        info=info,
    )


def _make_single(
    task: Callable[..., MujocoTask], *, render_mode: str | None = None, **kwargs: Any
) -> MujocoSingleEnv:
    view = {name: kwargs[name] for name in MujocoSingleEnv.VIEW_KEYWORDS if name in kwargs}
    task_kwargs = {name: value for name, value in kwargs.items() if name not in RENDERING_KEYWORDS}
    return MujocoSingleEnv(task(**task_kwargs), render_mode=render_mode, **view)


for _env_id, _task in TASKS.items():
    _limit = gym.spec(_env_id).max_episode_steps
    _native[_env_id] = _task, _limit
    _register_in_gymnasium(NAMESPACE + _env_id, _task, _limit)
