"""es-bench: how fast this machine is, with the contestants side by side in one run."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence

from es_flipout.bench.report import document
from es_flipout.cli import bench_env, bench_policy, bench_throughput, bench_update
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import Bench, make_folder, write
from es_flipout.cli.bench_display import print_tables
from es_flipout.cli.process import UsageParser, run_command

BENCHES: dict[str, Bench] = {
    bench.name: bench
    for bench in (bench_env.BENCH, bench_policy.BENCH, bench_update.BENCH, bench_throughput.BENCH)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-bench` and returns its exit status."""
    return run_command("es-bench", _bench, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-bench", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    own = {name: bench.add_to(benches) for name, bench in BENCHES.items()}
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        # Other defaults: what stands on the command line wins.
        own[parsed.bench].set_defaults(**BENCHES[parsed.bench].quick)
        parsed = parser.parse_args(arguments)
    if parsed.rounds is not None and parsed.rounds < 1:
        raise UsageError(f"--rounds must be >= 1, got {parsed.rounds}")
    if not (parsed.seconds > 0 and math.isfinite(parsed.seconds)):
        raise UsageError(f"--seconds must be > 0, got {parsed.seconds}")
    if getattr(parsed, "threads", None) is not None and parsed.threads < 1:
        raise UsageError(f"--threads must be >= 1, got {parsed.threads}")
    if parsed.seed < 0:
        raise UsageError(f"--seed must be >= 0, got {parsed.seed}")
    return parsed


def _bench(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    if parsed.out is not None:
        make_folder(parsed.out)  # before minutes of measuring
    bench = BENCHES[parsed.bench]
    report = bench.run(parsed)
    print_tables(report.tables)
    if parsed.out is not None:
        result = document(shlex.join(["es-bench", *arguments]), report.body, report.device)
        for path in write(parsed.out, report.stem, result, bench.picture(result)):
            print(path)
    return 0
