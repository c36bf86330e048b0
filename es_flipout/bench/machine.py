"""What a measurement ran on, for the JSON beside it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch

from es_flipout.processes import available_cores


def describe_machine(device: str = "cpu") -> dict[str, object]:
    """Returns the processor, the cores that this process may use, the GPU if any, the versions that matter.

    Args:
        device: torch device that took part.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    warp = {name: version(name) for name in ("mujoco-warp", "warp-lang") if "mujoco_warp" in sys.modules}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {}
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": available_cores(),
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mujoco": mujoco.__version__,
        **warp,
        "gymnasium": gymnasium.__version__,
        "numpy": np.__version__,
    }
