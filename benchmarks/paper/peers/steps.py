r"""Seconds of one step of a Bayesian network, with other libraries' flipout layers and with es_flipout's.

python -m benchmarks.paper.peers.steps --environments PEERS --json benchmarks/results/paper_peers_steps.json

Forward, KL and backward in float32, see `networks`. Every library has a process of its own, which idles while
another is measured; they take turns within a round, every other round in reverse order.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.peers import networks
from benchmarks.paper.peers.contestants import CONTESTANTS, OURS, running, settings
from benchmarks.peers.run import turns
from benchmarks.speed.tables import markdown, two_decimals
from es_flipout.cli.option_types import COUNT
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results

STEP = "step, s"
PROGRAM = "benchmarks.paper.peers.steps"
LSTM_BATCH = 128
"""The only batch of the LSTM."""
QUICK = {"rounds": 1, "seconds": 0.0, "networks": ["fc"], "batches": [8], "threads": [1]}


def main(words: Sequence[str] | None = None) -> int:
    """Measures, prints a table and returns the exit status."""
    return run_command(PROGRAM, _measure, words)


def _measure(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    if options.quick:
        vars(options).update(QUICK)
    results = Results(settings(PROGRAM, list(words), {}))
    results.settings |= {"rounds": options.rounds, "seconds": options.seconds, "networks": networks.NAMES}
    some = {name: CONTESTANTS[name] for name in options.contestants}
    for threads in options.threads:
        with running(some, options.environments, threads) as processes:
            for name, process in processes.items():
                results.settings["versions"][name] = process.ask("versions")
            for network, batch in cases(options.networks, options.batches):
                case = {"network": network, "batch": batch, "threads": threads}
                for index, name in turns(list(processes), options.rounds):
                    request = {"network": network, "batch": batch, "seconds": options.seconds}
                    seconds = processes[name].ask("step", **request)
                    if seconds is None:
                        continue
                    results.add(index, name, {STEP: seconds}, **case)
                    print(f"round {index + 1} of {options.rounds}: {case} {name} {seconds:.4f} s", flush=True)
                    if options.json:
                        results.write(options.json)
    print(table(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = UsageParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--environments", type=Path, metavar="DIR", help="folder of the libraries' environments")
    option("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    option("--networks", nargs="+", choices=list(networks.NAMES), default=list(networks.NAMES))
    option("--batches", nargs="+", type=COUNT, default=[128, 1024])
    option("--threads", nargs="+", type=COUNT, default=[1, 2])
    option("--rounds", type=COUNT, default=5)
    option("--seconds", type=float, default=1.0, help="about the duration of a measurement")
    option("--json", type=Path, metavar="FILE", help="file for the results")
    option("--quick", action="store_true", help="a small network once, for the tests")
    return parser


def cases(names: Sequence[str], batches: Sequence[int]) -> list[tuple[str, int]]:
    """Returns networks and batch sizes; the LSTM has one."""
    return [
        *itertools.product((name for name in names if name != "lstm"), batches),
        *((name, LSTM_BATCH) for name in names if name == "lstm"),
    ]


def table(results: Results) -> str:
    """Returns milliseconds per step, medians over rounds, and the fastest peer's over ours, as Markdown."""
    names = results.column("contestant")
    rows = []
    found = {tuple(row[each] for each in ("network", "batch", "threads")): None for row in results.rows}
    for network, batch, threads in found:
        case = results.where(network=network, batch=batch, threads=threads)
        label = f"{results.settings['networks'][network]}, batch {batch:,}, {_threads(threads)}"
        peers = {
            name: statistics.median(values.values())
            for name in names
            if name != OURS and (values := case.by_round(name, STEP))
        }
        cells = [_milliseconds(case, name) for name in names]
        ratio = "-"
        if peers and case.by_round(OURS, STEP):
            best = min(peers, key=lambda name: peers[name])
            ratio = f"{two_decimals(case.ratios((best, STEP), (OURS, STEP)))}, {best}"
        rows.append([label, *cells, ratio])
    return markdown(["ms per step", *names, "fastest peer / ours"], rows)


def _threads(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


def _milliseconds(case: Results, name: str) -> str:
    values: dict[int, Any] = case.by_round(name, STEP)
    return f"{1e3 * statistics.median(values.values()):,.1f}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
