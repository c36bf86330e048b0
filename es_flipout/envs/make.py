"""From an id to a vector environment: native tasks by name, and everything else that Gymnasium knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch

from es_flipout.choices import EngineName
from es_flipout.envs.contract import TorchVectorEnv, check_num_envs
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.envs.make_single import make_env
from es_flipout.envs.mujoco.make_engine import ENGINES
from es_flipout.envs.native import can_randomize, native_ids, native_maker, runs_natively
from es_flipout.named_spec import NamedSpec


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    engine: EngineName = "auto",
    engine_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    info: bool | Sequence[str] = True,
    fused: bool = True,
    randomize: bool = False,
    wrappers: Sequence[NamedSpec] = (),
    reward_weights: Sequence[float] = (),
    **kwargs: Any,
) -> TorchVectorEnv:
    """Makes a vector environment whose envs start and end independently.

    Args:
        env_id: Gymnasium id, or MODULE:ID to import a module that registers it first. A native version
            equals the official environment, env by env.
        num_envs: number of envs N.
        device: device of the tensors that it returns.
        engine: "batch", "mjdata_pool" or "warp" for native MuJoCo tasks (see `MujocoVectorEnv`);
            "gymnasium" for the environments of `gymnasium.make` in this process, "gymnasium_processes" to
            distribute them over processes (see `GymnasiumVectorEnv`). "auto" is a native engine on the CPU
            if the task has one, otherwise "gymnasium".
        engine_kwargs: keyword arguments of engine "warp"; see `WarpEngine`.
        dtype: floating dtype of observations.
        threads: number of physics threads, or of processes of "gymnasium_processes"; one per available core
            if None.
        info: whether native environments return the task's info entries; they are faster without. Names of
            entries: the environments of `gymnasium.make` return these, and others none.
        fused: whether the hooks of native tasks are compiled, if they can be: on the CPU, and without info.
        randomize: whether episodes are randomized, if the task has a randomization (`MujocoTask.randomize`).
        wrappers: of each environment, innermost first: a name in gymnasium.wrappers, MODULE:CLASS, or a
            mapping of `name` and keyword arguments; see `make_env`. Wrapped environments are never native.
        reward_weights: for a reward that is a vector: the weights of its parts, whose sum it becomes.
        **kwargs: keyword arguments as for `gymnasium.make(env_id, ...)`: the environment's own, and
            `max_episode_steps` (-1: no limit). An environment that has no limit of its own gets one of
            `DEFAULT_EPISODE_STEPS` env steps, and the result says so in `default_limit`.

    Raises:
        ValueError: if the id, a keyword argument or a value is not valid, in which case the message says what
            is; or if the environment's own code raises anything: the message is `ID: Type: text`.
    """
    check_num_envs(num_envs)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    if engine not in (engines := get_args(EngineName)):
        raise ValueError(f"engine must be one of {', '.join(engines)}, got {engine!r}")
    if runs_natively(env_id, engine, wrappers):
        if len(reward_weights):
            raise ValueError(
                f"reward_weights are for rewards that are vectors; the reward of {env_id} is a number"
            )
        make_native = native_maker(env_id, **kwargs)
        return make_native(
            num_envs,
            device=device,
            engine=engine,
            engine_kwargs=engine_kwargs,
            dtype=dtype,
            threads=threads,
            info=bool(info),
            fused=fused,
            randomize=randomize,
        )
    if engine_kwargs:
        raise ValueError(f"engine_kwargs are only for engine 'warp', got {dict(engine_kwargs)}")
    if engine in ENGINES:
        raise ValueError(
            f"engine {engine!r} runs native tasks only, not {env_id}{' in wrappers' if wrappers else ''} "
            f"(native: {', '.join(native_ids())})"
        )
    processes = {"gymnasium_processes": threads}.get(engine, 0)
    if randomize and can_randomize(env_id, **kwargs):
        kwargs["randomize"] = True
    make = partial(make_env, env_id, wrappers, reward_weights=reward_weights, **kwargs)
    try:
        return GymnasiumVectorEnv(
            make,
            num_envs,
            device=device,
            dtype=dtype,
            processes=processes,
            info=() if isinstance(info, bool) else info,
        )
    except RuntimeError as error:  # a process could not make them
        raise ValueError(f"{env_id}: {error}") from error
