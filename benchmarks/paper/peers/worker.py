"""A process with one library in it, which measures what it is asked to: one JSON line in, one out.

python -m benchmarks.paper.peers.worker with_blitz --threads 1

It idles on its input otherwise, so that the processes of all libraries can take turns.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

WARM_UP = 3
"""Steps before the first that is timed; TensorFlow traces and compiles in the first."""


def timed(step: Callable[[], object], calls: int) -> float:
    """Returns seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


class Worker:
    """Answers requests with one library."""

    def __init__(self, module: str, threads: int) -> None:
        """Imports the library."""
        self._library = importlib.import_module(f"benchmarks.paper.peers.{module}")
        self._library.set_threads(threads)
        self._warm_step = cache(self._make_warm_step)

    def _make_warm_step(self, network: str, batch: int) -> tuple[Callable[[], object], float]:
        """Returns the step, and about how many seconds it takes."""
        step: Callable[[], object] = self._library.step(network, batch)
        timed(step, WARM_UP)
        return step, timed(step, 1)

    def versions(self) -> dict[str, str]:
        """Returns the versions of library and framework."""
        return {name: importlib.metadata.version(name) for name in self._library.PACKAGES}

    def step(self, network: str, batch: int, seconds: float) -> float | None:
        """Returns the seconds of one step, of as many as take `seconds`; None if the layer does not exist."""
        try:
            step, about = self._warm_step(network, batch)
        except KeyError:
            return None
        return timed(step, max(1, math.ceil(seconds / about)))

    def check(self, seed: int, draws: int) -> dict[str, dict[str, float]]:
        """Returns the figures of `check`, by layer that the library has."""
        from benchmarks.paper.peers.check import cases, figures

        self._library.set_seed(seed)
        layers = self._library.LAYERS
        return {
            name: figures(layers[name], case, draws) for name, case in cases(seed).items() if name in layers
        }


def main() -> None:
    """Answers until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    worker = Worker(options.module, options.threads)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
