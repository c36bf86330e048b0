"""Where a run takes place: on the GPU as a whole, in parts, or on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import torch

from es_flipout.envs.engines.warp_setup import NO_GPU_FOR_WARP, num_warp_gpus
from es_flipout.envs.native import runs_natively
from es_flipout.run.config import Config


def place(config: Config, announce: Callable[[str], None]) -> Config:
    """Decides what `device: auto` and `env.engine: auto` mean on this machine.

    Args:
        config: of the run.
        announce: receives a line that says what was chosen and why, and another one if there is a long wait.

    Returns:
        The configuration with both decided.

    Raises:
        ValueError: if the module that the environment's id names cannot be imported.
    """
    config, line = _placed(config)
    announce(line)
    if config.env.engine == "warp":
        announce("mujoco_warp compiles its kernels on first use, which may take minutes")
    return config


def _placed(config: Config) -> tuple[Config, str]:
    obstacle = _obstacle(config)
    asked = f"device {config.device}, as configured"
    if config.device == "auto" and obstacle is not None:
        config, asked = replace(config, device="cpu"), f"device cpu, because {obstacle}"
    elif config.device == "auto":
        config, asked = replace(config, device="cuda"), f"device cuda ({torch.cuda.get_device_name()})"
    on_gpu = config.device.startswith("cuda")
    if config.env.engine == "warp" or (config.env.engine == "auto" and on_gpu and obstacle is None):
        config = replace(config, env=replace(config.env, engine="warp"))
        return config, f"{asked}: policies and physics (mujoco_warp) on it"
    if config.env.engine == "auto":  # room for contacts and constraints is for warp alone
        config = replace(config, env=replace(config.env, engine_kwargs={}))
    if on_gpu:
        why = f" because {obstacle}" if obstacle else ""
        asked = f"{asked}: policies on the GPU, environments on the CPU{why}"
    return config, asked


def _obstacle(config: Config) -> str | None:
    """Returns why a whole generation cannot run on a GPU; None if it can."""
    env = config.env
    if config.backend != "vectorized":
        return f"backend {config.backend} runs on the CPU"
    if env.engine not in ("auto", "warp"):
        return f"env.engine {env.engine} runs on the CPU"
    if not runs_natively(env.id, env.engine, env.wrappers):
        return f"{env.id}{' in wrappers' if env.wrappers else ''} is not a native task"
    if config.device == "auto" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if find_spec("mujoco_warp") is None:
        return "mujoco-warp is not installed (pip install 'es-flipout[gpu]')"
    if config.device != "cpu" and torch.cuda.is_available():
        try:
            return None if num_warp_gpus() else NO_GPU_FOR_WARP
        except (ValueError, RuntimeError, OSError) as error:
            return f"Warp does not start: {str(error).partition(chr(10))[0]}"
    return None
