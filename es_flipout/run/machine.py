"""Where a process runs: processor, memory, GPU, versions. No host name and no path is part of it."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import es_flipout
from es_flipout.processes import available_cores


def describe_machine(device: str = "cpu") -> dict[str, object]:
    """Returns the processor, the cores that this process may use, the GPU if any, the versions that matter.

    Args:
        device: torch device that took part.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {}
    warp = ["mujoco-warp", "warp-lang"] if "mujoco_warp" in sys.modules else []
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": available_cores(),
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("mujoco", *warp, "gymnasium", "numpy")},
    }


def describe_start(device: str, ranks: int) -> dict[str, object]:
    """Returns what a run records of a start of its process: when, and where.

    Args:
        device: torch device of the run.
        ranks: how many processes train together; the machine is that of rank 0.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": ranks,
        "memory_gib": round(memory / 2**30, 1),
        **describe_machine(device),
        "es_flipout": es_flipout.__version__,
    }
