"""Where a run takes place: on the GPU as a whole, in parts, or on the CPU.

A run stores where it takes place. On a machine that lacks the device or the engine, it continues elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import torch

from es_flipout.envs.engines.warp_setup import NO_GPU_FOR_WARP, num_warp_gpus
from es_flipout.envs.native import runs_natively
from es_flipout.run.config import Config
from es_flipout.run.trial import check_device

NO_CUDA = "torch sees no CUDA device"


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


def carried_over(config: Config, announce: Callable[[str], None]) -> Config:
    """Returns a stored run's configuration as one for this machine.

    Args:
        config: as the run has stored it.
        announce: receives a line that says what this machine lacks, if anything.

    Returns:
        The configuration, with the device (and engine warp) to be decided anew if they are not here.
    """
    try:
        check_device(config.device)
        lacks = _obstacle(config) if config.env.engine == "warp" else None
    except ValueError as error:
        lacks = str(error.__cause__).partition("\n")[0] if torch.cuda.is_available() else NO_CUDA
    if lacks is None:
        return config
    physics = " with env.engine warp" if config.env.engine == "warp" else ""
    announce(f"the run's device {config.device}{physics} is not available here ({lacks}): choosing another")
    return config.on_device("auto")


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
        return NO_CUDA
    if find_spec("mujoco_warp") is None:
        return "mujoco-warp is not installed (pip install 'es-flipout[gpu]')"
    if config.device != "cpu" and torch.cuda.is_available():
        try:
            return None if num_warp_gpus() else NO_GPU_FOR_WARP
        except (ValueError, RuntimeError, OSError) as error:
            return f"Warp does not start: {str(error).partition(chr(10))[0]}"
    return None
