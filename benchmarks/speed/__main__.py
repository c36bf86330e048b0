"""Speed of the parts: python -m benchmarks.speed BENCH [OPTIONS] [--json FILE].

Contestants take turns, one after the other within every round; a table is printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.speed import (
    before_after,
    configs,
    device,
    env,
    loop,
    memory,
    physics,
    policy,
    robot,
    single_forward,
    startup,
    tables,
    update,
)
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.cli.results import Results
from es_flipout.processes import available_cores
from es_flipout.run.machine import describe_machine

BENCHES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(policy, memory, update, env, loop, device, single_forward),
        *(physics, configs, startup, before_after, robot),
    )
}
"""By name; each has `add_options`, `measure` and the defaults of the common options."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a bench and returns the exit status."""
    return run_command("benchmarks.speed", _measure, words)


def _measure(words: Sequence[str]) -> int:
    parser = UsageParser(prog="benchmarks.speed", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        about = str(bench.__doc__).partition("\n")[0]
        own = benches.add_parser(name, help=about, description=about, allow_abbrev=False)
        bench.add_options(own)
        own.add_argument("--rounds", type=COUNT, help="alternating rounds")
        own.add_argument("--seconds", type=AMOUNT, help="least duration of a measurement")
        own.add_argument(
            "--threads", type=COUNT, help="of torch and the physics (default: every core, or one)"
        )
        own.add_argument("--seed", type=SEED, default=0, help="of every draw")
        own.add_argument("--json", type=Path, metavar="FILE", help="file for the results")
        own.set_defaults(**{"threads": available_cores(), **bench.DEFAULTS})
    options = parser.parse_args(words)
    if options.json and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json: the folder {options.json.parent} does not exist")
    bench = BENCHES[options.bench]
    silence_mujoco()
    torch.set_num_threads(options.threads)
    command = shlex.join(["python", "-m", "benchmarks.speed", *words])
    settings = {name: value for name, value in vars(options).items() if name not in ("bench", "json")}
    results = Results({"command": command, **settings, "device": str(settings.get("device", "cpu"))})
    try:
        bench.measure(options, results)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    results.settings["machine"] = describe_machine(results.settings["device"])
    print(tables.OF_BENCH[options.bench](results))
    if options.json:
        results.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
