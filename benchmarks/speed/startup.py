"""How long a short es-train takes in all: with empty caches of compiled code (cold), and again (warm).

Everything from the start of the process to its end counts. The caches are those below NUMBA_CACHE_DIR and
XDG_CACHE_HOME; Python's own bytecode is there in both. With --against, another checkout takes turns.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.es_train import Checkout
from benchmarks.speed.timing import turns
from es_flipout.cli.results import Results

THIS, AGAINST = "this version", "the other version"
COLD, WARM = "cold, s", "warm, s"
"""Metrics."""
DEFAULTS = {"rounds": 5}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--config", default="inverted_pendulum.yaml", help="as for es-train")
    option("--arguments", type=shlex.split, default=[], help="further arguments of es-train, in quotes")
    option("--against", metavar="CHECKOUT", help="clone of another version")


def wall_seconds(checkout: Checkout, words: list[str]) -> float:
    """Returns how long es-train takes, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        checkout.run("train", words, Path(folder))
        return time.perf_counter() - start


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures each checkout cold, then warm, in alternating rounds."""
    checkouts = {THIS: Checkout()}
    if options.against:
        checkouts[AGAINST] = Checkout(Path(options.against).resolve())
    words = [f"--config={options.config}", f"--threads={options.threads}", *options.arguments]
    for checkout in checkouts.values():
        wall_seconds(checkout, words)  # Python compiles its bytecode
    for index, name in turns(checkouts, options.rounds):
        with tempfile.TemporaryDirectory() as caches:
            own = {"NUMBA_CACHE_DIR": f"{caches}/numba", "XDG_CACHE_HOME": caches}
            checkout = replace(checkouts[name], environment=own)
            for metric in (COLD, WARM):
                results.add(index, name, {metric: wall_seconds(checkout, words)})
