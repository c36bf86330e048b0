"""Compiles every CUDA kernel of engine warp on a machine without a GPU.

WARP_CACHE_PATH=DIR python -m benchmarks.gpu.precompile_kernels [TASK ...]

mujoco_warp chooses its kernels by the model and by a few questions about the device. Here the device answers
as an H100 does, launches are only noted, and NVRTC, which is part of Warp's own library, compiles what they
need. A kernel that does not compile is found; and where there is a GPU of this architecture, Warp takes what
is in DIR and compiles nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.envs.engines.warp import NCONMAX, NJMAX, _for_warp
from es_flipout.envs.engines.warp_order import FixedOrder
from es_flipout.envs.engines.warp_setup import import_warp
from es_flipout.envs.mujoco import TASKS

ARCHITECTURE, MULTIPROCESSORS = 90, 132
"""sm_90, and how many of them an H100 has."""
NUM_ENVS = 1024

Launch = tuple[Any, int]
"""A module of Warp's, and the block size that it is compiled for."""


class PretendedGPU:
    """Warp's CPU device, which says of itself that it is a GPU."""

    is_cuda, is_cpu, sm_count = True, False, MULTIPROCESSORS

    def __init__(self, device: Any) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Yields the list that launches are noted in, instead of being made."""
    launches: list[Launch] = []

    def note(kernel: Any, dim: Any = None, *_: Any, block_dim: int = 256, **__: Any) -> None:
        if kernel.is_generic:
            raise NotImplementedError(f"which of its overloads {kernel.key} would launch is not known here")
        if np.prod(dim):
            launches.append((kernel.module, block_dim))

    def note_suggested(kernel: Any, device: Any = None) -> tuple[int, int]:
        launches.append((kernel.module, kernel.module.options["block_dim"]))  # asking loads the module
        return 256, 4 * MULTIPROCESSORS

    def loop_once(condition: Any, while_body: Callable[..., Any], stream: Any = None, **given: Any) -> None:
        while_body(**given)

    get_device = wp.get_device
    with (
        patch.object(wp, "launch", note),
        patch.object(wp, "launch_tiled", note),
        patch.object(wp, "get_device", lambda *names: PretendedGPU(get_device(*names))),
        patch.object(wp, "capture_while", loop_once),
        patch.object(wp, "get_suggested_block_size", note_suggested),
    ):
        yield launches


def launch_all(model: mujoco.MjModel, *, njmax: int = NJMAX, deterministic: bool = False) -> None:
    """Launches whatever engine warp does with a model."""
    model = _for_warp(model)
    on_device = mjw.put_model(model)
    on_device.opt.warn_overflow = 0
    on_device.opt.deterministic = deterministic
    data = mjw.make_data(model, nworld=NUM_ENVS, nconmax=NCONMAX, njmax=njmax)
    if deterministic:
        FixedOrder(on_device, data)
    mjw.reset_data(on_device, data)
    mjw.step(on_device, data)
    mjw.forward(on_device, data)
    mjw.rne_postconstraint(on_device, data)


def needed(tasks: Sequence[str]) -> list[Launch]:
    """Returns the modules that these tasks, and the tests marked `gpu`, need."""
    import_warp()  # initialized, and quiet
    with noted_launches() as launches:
        for name in tasks:
            model = TASKS[name]().model
            launch_all(model)
            if name == "Humanoid-v5":
                launch_all(model, njmax=1)
                launch_all(model, deterministic=True)
            if name == "Ant-v5":
                text = Path(expand_model_path("ant.xml")).read_text()
                elliptic = text.replace("</mujoco>", '<option cone="elliptic"/></mujoco>')
                launch_all(mujoco.MjModel.from_xml_string(elliptic))
    return list(dict.fromkeys(launches))


def compile_all(launches: Sequence[Launch]) -> tuple[int, list[tuple[float, str]]]:
    """Compiles modules into Warp's cache.

    Returns:
        How many were not there yet, and the seconds that each took, with what it is, the slowest first.

    Raises:
        RuntimeError: if a kernel does not compile.
    """
    compiled, seconds = 0, []
    for module, block_dim in launches:
        start = time.perf_counter()
        options = module.resolve_options(wp.config, block_dim=block_dim)
        compiled += module._compile(None, output_arch=ARCHITECTURE, use_ptx=False, options=options)
        seconds.append((time.perf_counter() - start, f"{module.name}, blocks of {block_dim}"))
    return compiled, sorted(seconds, reverse=True)


def main() -> None:
    if unknown := set(sys.argv[1:]) - set(TASKS):
        sys.exit(f"no such task: {', '.join(unknown)} (allowed: {', '.join(sorted(TASKS))})")
    launches = needed(sys.argv[1:] or sorted(TASKS))
    compiled, seconds = compile_all(launches)
    total = sum(each for each, _ in seconds)
    compiled_in = f"{compiled} of them compiled in {total:.0f} s into {wp.config.kernel_cache_dir}"
    print(f"{len(launches)} modules, {compiled_in}")
    for each, what in seconds[:8]:
        print(f"  {each:5.1f} s  {what}")


if __name__ == "__main__":
    main()
