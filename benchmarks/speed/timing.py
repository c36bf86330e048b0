"""Seconds of torch operations, on any device, and the two rates that no operation of the machine exceeds.

A GPU runs behind the program that feeds it. So an operation is called back to back, as often as a measurement
should last, and the clock stops when the device has caught up.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.speed.work import Work

MATMUL, TRIAD = "float32 matmul", "triad"
"""The operations that show what the machine can do."""
TRIAD_NUMBERS = 2**25
"""Numbers in each of the three arrays of the triad: 128 MiB, more than caches hold."""


@dataclass(frozen=True)
class Operation:
    """Something to be timed, and the work that is in it.

    Attributes:
        run: does it.
        work: see `Work`.
        is_forward: whether training on a GPU repeats it as a CUDA graph, as it does forwards.
    """

    run: Callable[[], object]
    work: Work
    is_forward: bool = False

    def on(self, device: torch.device) -> Callable[[], object]:
        """Returns what repeats it on a device as training does."""
        return recorded(self.run, device) if self.is_forward and device.type == "cuda" else self.run


def recorded(
    run: Callable[[], object], device: torch.device, pool: tuple[int, int] | None = None
) -> Callable[[], object]:
    """Returns what replays an operation as a CUDA graph.

    Called one by one, the kernels of a small network would time Python.

    Args:
        run: the operation.
        device: a GPU.
        pool: memory, from `torch.cuda.graph_pool_handle()`, that it shares with other graphs. Nothing in it
            may be needed after a replay.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # load modules, set up workspaces
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay


class Stopwatch:
    """Measures one operation in seconds per call.

    Not by `torch.utils.benchmark.Timer`, which calls a slow operation two or three times for each call that
    it times: some updates take a minute.
    """

    def __init__(self, run: Callable[[], object], device: torch.device, least_seconds: float) -> None:
        """Calls the operation twice, once to warm up and once to see how often it fits in.

        Args:
            run: what is timed.
            device: where it runs.
            least_seconds: about the least duration of a measurement.
        """
        self._run, self._device = run, device
        self._seconds(1)
        self._calls = max(1, math.ceil(least_seconds / self._seconds(1)))

    def __call__(self) -> float:
        """Returns the seconds per call of another measurement."""
        return self._seconds(self._calls) / self._calls

    def _seconds(self, calls: int) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(calls):
            self._run()
        synchronize(self._device)
        return time.perf_counter() - start


def turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Returns who is measured in which round, and names it on standard error."""
    for index, name in itertools.product(range(rounds), list(names)):
        print(f"round {index + 1} of {rounds}: {name}", file=sys.stderr)
        yield index, name


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    torch.get_device_module(device).synchronize(device)


def available_device(name: str) -> torch.device:
    """Returns the device of that name, for the `type` of an option.

    Raises:
        argparse.ArgumentTypeError: if there is none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"device {name!r} is not available") from error
    return device


def limits(device: torch.device) -> dict[str, Operation]:
    """Returns the operations that show the machine's float32 FLOP/s and bytes/s.

    FLOP/s: the product of two square matrices, 2 n³. Bytes/s: the triad a = b + 3 c of STREAM, 12 n for n
    numbers, counted as there: that a store may read what it overwrites is left out.
    """
    n = 2048 if device.type == "cpu" else 8192
    left, right, product = (torch.ones(n, n, device=device) for _ in range(3))
    a, b, c = (torch.ones(TRIAD_NUMBERS, device=device) for _ in range(3))
    return {
        MATMUL: Operation(lambda: torch.mm(left, right, out=product), Work(2 * n**3, 12 * n**2)),
        TRIAD: Operation(lambda: torch.add(b, c, alpha=3, out=a), Work(2 * a.numel(), 12 * a.numel())),
    }
