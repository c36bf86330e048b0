"""Warp and mujoco_warp, which are optional: importing them, and the GPUs that they can use."""

from __future__ import annotations

from typing import Any

NO_GPU_FOR_WARP = "Warp does not see this GPU: the driver is probably too old for this build of warp-lang"


def import_warp() -> tuple[Any, Any]:
    """Returns the modules warp, initialized, and mujoco_warp.

    Raises:
        ValueError: if they are not installed.
    """
    try:
        import warp as wp

        if wp.config.log_level == wp.LOG_INFO:
            wp.config.log_level = wp.LOG_WARNING  # otherwise it prints every kernel that it loads
        wp.init()
        import mujoco_warp as mjw
    except ImportError as error:
        raise ValueError(
            f"engine 'warp' needs the package mujoco-warp (pip install 'es-flipout[gpu]'): {error}"
        ) from error
    return wp, mjw


def num_warp_gpus() -> int:
    """Returns how many GPUs Warp can use; fewer than torch sees if the driver is too old for Warp.

    Raises:
        ValueError: if Warp is not installed.
    """
    wp, _ = import_warp()
    return int(wp.get_cuda_device_count())
