"""Between the host and a GPU: copies through pinned memory, streams, and what recording a graph needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Returns a copy of a host tensor on a device.

    On a GPU the copy is queued on torch's current stream and may not have finished, but later work on that
    stream sees it complete. The host tensor may be overwritten at once.
    """
    if device.type != "cuda":
        return values.to(device, copy=True)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Tensor:
    """Returns a tensor on the host; coming from a GPU it waits for the current stream, and for no other."""
    if values.device.type != "cuda":
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns a stream of a GPU; None for the CPU, which has none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def current_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns this thread's current stream of a GPU; None for the CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@contextmanager
def working_on(stream: torch.cuda.Stream | None, after: torch.cuda.Stream | None) -> Iterator[None]:
    """Makes a stream current, after all the work queued on another so far; waits for it at the end.

    Memory that the work used may then be freed. On the CPU, where both are None, it does nothing.
    """
    if stream is None or after is None:
        yield
        return
    stream.wait_stream(after)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps Python's garbage collector from running, in any thread.

    No GPU memory may be freed while a CUDA graph is recorded, and a collection might free some.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
