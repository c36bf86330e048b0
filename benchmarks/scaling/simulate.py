"""How far training scales, by simulation: python -m benchmarks.scaling.simulate.

Costs were measured on one machine by `measure`, lengths of episodes by `record`. Every result for more ranks
than were measured there is an extrapolation; a slower network is a further assumption.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.scaling.costs import MEASURED, Costs
from benchmarks.scaling.generation import CLAIMED, PARTS, STATIC, Setup, simulated
from benchmarks.scaling.lengths import CONSTANT, Ints, drawn
from es_flipout.cli.option_types import COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results

LOOPBACK, NETWORK = "as measured", "latency x 10, 1 GB/s"
"""Networks: the loopback of the machine on which costs were measured, and a slow one that is assumed."""
CONSTANT_STEPS = 1000
"""Length of an episode if all are equally long: that of Humanoid's that stay up."""
EFFICIENCY, SECONDS = "efficiency", "seconds"
BALANCE, UTILIZATION = "balance", "store busy"
"""Metrics, besides the shares of the time in `PARTS`."""
NOTICEABLE = 0.1
"""A part that takes this share of a generation is worth a change."""


def main(words: Sequence[str] | None = None) -> int:
    """Simulates and returns the exit status."""
    return run_command("benchmarks.scaling.simulate", _simulate, words)


def _simulate(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    measured = Costs.read(options.costs)
    networks = {LOOPBACK: measured, NETWORK: measured.on_network(10, 1e9)}
    command = shlex.join(["python", "-m", "benchmarks.scaling.simulate", *words])
    settings = {"costs": options.costs.name, "seed": options.seed, "policy": options.policy}
    results = Results({"command": command, **settings})
    sizes = [("strong", members) for members in options.members]
    sizes += [("weak", members) for members in options.members_per_rank]
    for (scaling, members), lengths, ranks in itertools.product(sizes, options.lengths, options.ranks):
        total = members * ranks if scaling == "weak" else members
        if total < ranks:
            continue
        case = {"scaling": scaling, "members": members, "lengths": lengths, "ranks": ranks}
        table = drawn_lengths(lengths, total, options.seed)
        setup = Setup(ranks, options.cores, options.num_envs, policy=options.policy)
        alone = simulated(table, replace(setup, ranks=1), measured).seconds
        for (name, costs), size, sharing in itertools.product(
            networks.items(), options.block_sizes, (STATIC, CLAIMED)
        ):
            if sharing == CLAIMED or (name, size) == (LOOPBACK, max(options.block_sizes)):
                figures = figures_of(table, replace(setup, block_size=size, sharing=sharing), costs, alone)
                results.add(0, sharing, figures, **case, network=name, block_size=size)
    print(tables(results))
    if options.json:
        results.write(options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = UsageParser(prog="benchmarks.scaling.simulate", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--ranks", type=COUNT, nargs="+", default=[1, 8, 64, 128, 256, 512, 1024, 2048, 4096])
    option("--members", type=COUNT, nargs="*", default=[8192, 32_768], help="fixed, for strong scaling")
    option("--members-per-rank", type=COUNT, nargs="*", default=[8, 32], help="for weak scaling")
    option("--lengths", nargs="+", default=[CONSTANT, "untrained", "half_trained", "upright"])
    option("--block-sizes", type=COUNT, nargs="+", default=[1, 4])
    option("--cores", type=COUNT, default=1, help="of a rank")
    option("--num-envs", type=COUNT, default=256, help="most that a rank steps together")
    option("--policy", default="linear")
    option("--seed", type=SEED, default=0, help="of the lengths")
    option("--costs", type=Path, default=MEASURED, metavar="FILE", help="what measure has written")
    option("--json", type=Path, metavar="FILE", help="file for the results")
    return parser


def drawn_lengths(name: str, count: int, seed: int) -> Ints:
    """Returns the lengths of so many episodes; see `lengths`."""
    scale = CONSTANT_STEPS if name == CONSTANT else 1
    return drawn(name, np.random.default_rng(seed), scale, count)


def figures_of(lengths: Ints, setup: Setup, costs: Costs, alone: float) -> dict[str, float]:
    """Returns the metrics of a generation; NaN for all if the store cannot answer so many ranks.

    The efficiency is the time that one rank would take for the same episodes, `alone`, divided by the number
    of ranks and by their time.
    """
    try:
        found = simulated(lengths, setup, costs)
    except ValueError:
        return dict.fromkeys((EFFICIENCY, SECONDS, BALANCE, UTILIZATION, *PARTS), math.nan)
    figures = {EFFICIENCY: alone / (setup.ranks * found.seconds), SECONDS: found.seconds}
    return {**figures, BALANCE: found.balance, UTILIZATION: found.utilization, **found.shares()}


def tables(results: Results) -> str:
    """Returns the results as Markdown: a table for each population, and the sizes at which parts matter."""
    texts = []
    for scaling, members, lengths in _cases(results, "scaling", "members", "lengths"):
        own = results.where(scaling=scaling, members=members, lengths=lengths)
        unit = "members" if scaling == "strong" else "members per rank"
        texts.append(f"{scaling}, {members:,} {unit}, lengths: {lengths}\n\n{efficiencies(own)}")
    return "\n\n".join([*texts, noticeable(results)])


def _cases(results: Results, *columns: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(row[name] for name in columns) for row in results.rows))


def efficiencies(results: Results) -> str:
    """Returns the efficiency by ranks, and where the time goes with the largest blocks and as measured."""
    largest = max(results.column("block_size"))
    ways = [("static", STATIC, LOOPBACK, largest)]
    ways += [
        (f"claimed, block {size}{'' if network == LOOPBACK else ', slow network'}", CLAIMED, network, size)
        for network in results.column("network")
        for size in results.column("block_size")
    ]
    parts = [f"{name}, %" for name in PARTS]
    lines = [f"| ranks | {' | '.join(name for name, *_ in ways)} | s | {' | '.join(parts)} |"]
    lines.append("|" + "---|" * (2 + len(ways) + len(parts)))
    for ranks in results.column("ranks"):
        own = results.where(ranks=ranks)
        cells = [f"{_value(own, EFFICIENCY, *way):.0%}" for _, *way in ways]
        last = CLAIMED, LOOPBACK, largest
        cells.append(f"{_value(own, SECONDS, *last):.2f}")
        cells += [f"{100 * _value(own, name, *last):.1f}" for name in PARTS]
        lines.append(f"| {ranks:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _value(results: Results, metric: str, sharing: str, network: str, block_size: int) -> float:
    return results.where(network=network, block_size=block_size).by_round(sharing, metric)[0]


def noticeable(results: Results) -> str:
    """Returns for every part the fewest ranks simulated at which it takes a tenth of a generation."""
    parts = PARTS[1:]
    lines = [
        f"| scaling | lengths | block | network | {' | '.join(parts)} |",
        "|" + "---|" * (4 + len(parts)),
    ]
    for scaling, members, lengths, block_size, network in _cases(
        results, "scaling", "members", "lengths", "block_size", "network"
    ):
        own = results.where(
            scaling=scaling, members=members, lengths=lengths, block_size=block_size, network=network
        )
        cells = []
        for part in parts:
            rows = own.where(contestant=CLAIMED, metric=part).rows
            reached = [row["ranks"] for row in rows if row["value"] >= NOTICEABLE]
            cells.append(f"{min(reached):,}" if reached else "-")
        lines.append(
            f"| {scaling}, {members:,} | {lengths} | {block_size} | {network} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
