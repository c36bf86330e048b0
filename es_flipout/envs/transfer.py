"""Copies between the host and a GPU, through memory that the GPU reaches by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Returns a copy of a tensor of the host on a device; on a GPU it may still be under way.

    It is on torch's current stream, so that whatever is computed there finds it complete; and the tensor may
    be overwritten at once.
    """
    if device.type != "cuda":
        return values.to(device, copy=True)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Tensor:
    """Returns a tensor on the host, waiting for the current stream, and no other, if it is not there."""
    if values.device.type != "cuda":
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned
