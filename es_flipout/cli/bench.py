"""es-bench: how fast this machine evaluates populations, with the contestants side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from es_flipout.cli.completion import add_completion
from es_flipout.cli.config_file import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED, keyword_arguments
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.torchrun import is_launched

QUICK = {"num_envs": 32, "population_size": 32, "rounds": 2, "seconds": 0.5}
"""Defaults under --quick."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-bench` and returns its exit status."""
    return run_command("es-bench", _bench, arguments)


def _parser() -> tuple[UsageParser, argparse.ArgumentParser]:
    """Returns the parser of `es-bench`, and that of `es-bench throughput`."""
    parser = UsageParser(prog="es-bench", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(required=True, metavar="BENCH")
    about = "evaluation of populations: process pool by number of workers, vectorized, on a GPU"
    bench = benches.add_parser("throughput", help=about, description=about, allow_abbrev=False)

    def option(name: str, text: str, **settings: Any) -> None:
        if "default" in settings and settings["default"] not in ([], {}):
            text += " (default: %(default)s)"
        bench.add_argument(f"--{name}", help=text, **settings)

    option("env", "any task that es-train takes", default="Humanoid-v5")
    option(
        "env-kwargs", "its keyword arguments, as YAML: '{frame_skip: 4}'", type=keyword_arguments, default={}
    )
    option("num-envs", "envs stepped together", type=COUNT, default=256)
    option("population-size", "members per generation (default: 4 x num-envs)", type=COUNT)
    option("hidden-sizes", "of the MLP", type=COUNT, nargs="*", default=[64, 64])
    workers = "sizes of the process pool (default: powers of two, and every core); 1 is always measured"
    option("workers", workers, type=COUNT, nargs="+", metavar="N")
    option("threads", "of the vectorized contestants (default: every core)", type=COUNT)
    on_warp = "also measure engine warp, everything on one device, with N envs each"
    option("warp-envs", on_warp, type=COUNT, nargs="+", metavar="N", default=[])
    option("warp-members-per-env", "of those", type=COUNT, metavar="N", default=4)
    option("warp-device", "device of those", default="cuda")
    ranks = "numbers of ranks, under torchrun (default: powers of two, and all); 1 is always measured"
    option("ranks", ranks, type=COUNT, nargs="+", metavar="N")
    option("device", "of the policy of each rank", default="cpu")
    option("price-per-core-hour", "paid by contestants without a GPU, for the cores they use", type=AMOUNT)
    machine = "paid by contestants with a GPU, and by all without a core price"
    option("price-per-machine-hour", machine, type=AMOUNT)
    option("rounds", "alternating rounds, each with every contestant once", type=COUNT, default=3)
    option("seconds", "least duration of a measurement", type=AMOUNT, default=5.0)
    option("seed", "of every draw", type=SEED, default=0)
    option("quick", "small sizes, done within a minute: other defaults", action="store_true")
    option("out", "folder for the results as JSON", type=Path, metavar="DIR")
    add_completion(parser)
    return parser, bench


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, bench = _parser()
    if parser.parse_args(arguments).quick:
        bench.set_defaults(**QUICK)
    parsed = parser.parse_args(arguments)
    parsed.population_size = parsed.population_size or 4 * parsed.num_envs
    return parsed


def _bench(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    if parsed.ranks and not is_launched():
        raise UsageError(
            "--ranks needs torchrun: torchrun --nproc-per-node 4 --no-python es-bench throughput ..."
        )
    # torch and MuJoCo take seconds to import: --help and mistakes do not wait for them.
    from es_flipout.cli.benching import measure

    return measure(parsed, arguments)
