"""Measures what several ranks cost besides their episodes: python -m benchmarks.scaling.measure.

Claims and exchanges are measured on ranks of this machine, see `rank_costs`; merge, update and env steps in
this process alone. The formulas of `costs` are fitted to medians over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.costs import MEASURED, SQUARE, Line, exchange_quantities
from benchmarks.scaling.launch import torchrun
from benchmarks.scaling.local_costs import OBSERVATIONS, POLICIES, Update, merge_seconds, steps
from benchmarks.scaling.rank_costs import CLAIM_ALONE, CLAIM_TOGETHER, COMPUTED, EXCHANGE, SECONDS
from es_flipout.cli.option_types import COUNT
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.cli.results import Results
from es_flipout.run.machine import describe_machine

MERGE, UPDATE, STEP = "merge", "update", "step"
"""Contestants measured in this process."""
RANK_CODE = "import sys; from benchmarks.scaling.rank_costs import main; main(sys.argv[1:])"
"""What a rank executes."""
Fits = dict[str, Any]
Key = tuple[Any, ...]


def main(words: Sequence[str] | None = None) -> int:
    """Measures the costs and returns the exit status."""
    return run_command("benchmarks.scaling.measure", _measure, words)


def _measure(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    silence_mujoco()
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.scaling.measure", *words])
    results = Results({"command": command, "rounds": options.rounds, "observations": OBSERVATIONS})
    for index in range(options.rounds):
        for ranks in options.ranks:
            print(f"round {index + 1} of {options.rounds}: {ranks} ranks", file=sys.stderr)
            _measure_ranks(results, index, ranks, options)
        _measure_merge(results, index, options)
        _measure_update(results, index, options.policies, options.members)
        _measure_steps(results, index, options.num_envs, options.repeats)
    if options.add_to:
        before = Results.read(options.add_to)
        anew = results.column("contestant")
        results.rows = [row for row in before.rows if row["contestant"] not in anew] + results.rows
        results.settings["before"] = before.settings["command"]
    results.settings["machine"] = describe_machine()
    results.settings["fits"] = fits_of(results)
    print(table(results))
    if options.json:
        results.write(options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = UsageParser(prog="benchmarks.scaling.measure", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--ranks", type=COUNT, nargs="*", default=[2, 4, 8, 16, 32], help="how many at a time")
    option("--sizes", type=COUNT, nargs="*", default=[100, 1_000, 10_000, 100_000, 1_000_000], help="bytes")
    option("--calls", type=COUNT, default=300, help="claims per rank, ten times the exchanges")
    option("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="of the updates")
    option("--members", type=COUNT, nargs="*", default=[256, 1024, 4096, 16_384, 65_536])
    option("--num-envs", type=COUNT, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    option("--merge-ranks", type=COUNT, nargs="*", default=[8, 64, 512, 4096])
    option("--merge-episodes", type=COUNT, nargs="*", default=[8192, 65_536])
    option("--merge-blocks", type=COUNT, nargs="*", default=[512, 2048, 8192])
    option("--repeats", type=COUNT, default=5, help="of what is measured in this process, per round")
    option("--rounds", type=COUNT, default=3)
    add_to = "earlier results, of which those are kept that are not measured now"
    option("--add-to", type=Path, metavar="FILE", help=add_to)
    option("--json", type=Path, metavar="FILE", help=f"file for the results ({MEASURED.name})")
    return parser


def _measure_ranks(results: Results, index: int, ranks: int, options: argparse.Namespace) -> None:
    settings = json.dumps({"calls": options.calls, "sizes": options.sizes})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        torchrun(ranks, RANK_CODE, [settings, str(path)], Path(folder))
        for row in json.loads(path.read_text()):
            figures = {metric: row.pop(metric) for metric in (SECONDS, COMPUTED) if metric in row}
            results.add(index, row.pop("contestant"), figures, **row)


def _measure_merge(results: Results, index: int, options: argparse.Namespace) -> None:
    cases = itertools.product(options.merge_ranks, options.merge_episodes, options.merge_blocks)
    for ranks, episodes, blocks in cases:
        if ranks <= blocks <= episodes:
            case = {"ranks": ranks, "episodes": episodes, "blocks": blocks}
            seconds = merge_seconds(**case, observations=OBSERVATIONS)
            results.add(index, MERGE, {SECONDS: seconds}, **case)


def _measure_update(results: Results, index: int, policies: Sequence[str], sizes: Sequence[int]) -> None:
    for policy, members in itertools.product(policies, sizes):
        with closing(Update(policy, members)) as update:
            update()
            parts = [update() for _ in range(3)]
        figures = {name: statistics.median(each[name] for each in parts) for name in parts[0]}
        results.add(index, UPDATE, figures, policy=policy, members=members)


def _measure_steps(results: Results, index: int, sizes: Sequence[int], repeats: int) -> None:
    for num_envs in sizes:
        seconds = list(itertools.islice(steps(num_envs), 1, 1 + repeats))
        results.add(index, STEP, {SECONDS: statistics.median(seconds)}, num_envs=num_envs)


def medians(
    results: Results, contestant: str, case: Callable[[dict[str, Any]], Key], metric: str | None = SECONDS
) -> dict[Key, float]:
    """Returns the median over rounds, by case, of a metric, or of the sum of all if that is None."""
    found: dict[Key, dict[int, float]] = {}
    columns = {"contestant": contestant} if metric is None else {"contestant": contestant, "metric": metric}
    for row in results.where(**columns).rows:
        by_round = found.setdefault(case(row), {})
        by_round[row["round"]] = by_round.get(row["round"], 0.0) + row["value"]
    return {key: statistics.median(each.values()) for key, each in found.items()}


def fits_of(results: Results) -> Fits:
    """Returns the formulas of `costs` that fit the results."""
    alone = medians(results, CLAIM_ALONE, lambda row: (row["ranks"],))
    together = medians(results, CLAIM_TOGETHER, lambda row: (row["ranks"],))
    merges = medians(
        results, MERGE, lambda row: (row["ranks"], row["episodes"], row["blocks"] * OBSERVATIONS)
    )
    return {
        "claim_latency": statistics.median(alone.values()),
        "claim_service": statistics.median(seconds / ranks for (ranks,), seconds in together.items()),
        "exchange": _fit(_exchanges(results, COMPUTED), without=[SQUARE]),
        "exchange_here": _fit(_exchanges(results, SECONDS)),
        "merge": _fit(merges),
        "update": {
            policy: _fit(_updates(results, policy))
            for policy in results.where(contestant=UPDATE).column("policy")
        },
        "step": _fit(medians(results, STEP, lambda row: (row["num_envs"],))),
    }


def _exchanges(results: Results, metric: str) -> dict[Key, float]:
    def case(row: dict[str, Any]) -> Key:
        return exchange_quantities(row["ranks"], row["bytes"], row["answer_bytes"])

    return medians(results, EXCHANGE, case, metric)


def _updates(results: Results, policy: str) -> dict[Key, float]:
    return medians(results.where(policy=policy), UPDATE, lambda row: (row["members"],), None)


def _fit(measured: dict[Key, float], without: Sequence[int] = ()) -> Fits:
    """Fits a formula, without the quantities of these indices."""
    keys = [tuple(0.0 if at in without else each for at, each in enumerate(key)) for key in measured]
    seconds = list(measured.values())
    line = Line.fitted(keys, seconds)
    errors = sorted(abs(each) for each in line.errors(keys, seconds))
    return {
        "constant": line.constant,
        "slopes": list(line.slopes),
        "median_error": statistics.median(errors),
        "largest_error": errors[-1],
    }


def table(results: Results) -> str:
    """Returns the fits as Markdown, in microseconds and nanoseconds."""
    fits = results.settings["fits"]
    lines = ["| cost | constant, us | per unit, ns | median error of the fit |", "|---|---|---|---|"]
    lines += [f"| claim: round trip | {fits['claim_latency'] * 1e6:.1f} | | |"]
    lines += [f"| claim: store busy | {fits['claim_service'] * 1e6:.1f} | | |"]
    named = {name: fits[name] for name in ("exchange", "exchange_here", "merge", "step")}
    named |= {f"update, {policy}": fit for policy, fit in fits["update"].items()}
    for name, fit in named.items():
        slopes = ", ".join(f"{slope * 1e9:,.2f}" for slope in fit["slopes"])
        lines.append(f"| {name} | {fit['constant'] * 1e6:,.1f} | {slopes} | {fit['median_error']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
