"""es-bench policy: what a population's forward, noise and gradient cost, by noise family."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from es_flipout.bench.families import FAMILIES, MULTIPLE
from es_flipout.bench.plots import Curve, Lines, Panel, Picture
from es_flipout.bench.policy import (
    DENSE,
    FORWARDS,
    UNPERTURBED,
    Point,
    ask,
    forward,
    gradient,
    measure_point,
    sweep,
)
from es_flipout.bench.report import Spread, spreads
from es_flipout.bench.timing import MATMUL, TRIAD, checked_device, torch_threads
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import Bench, Report, add_device_options, add_timing_options
from es_flipout.cli.bench_display import Bar, make_table, number, spread_of_ms
from es_flipout.cli.bench_memory import memory_picture, policy_subject, run_memory
from es_flipout.processes import available_cores

SWEEPS: dict[str, dict[str, list[int]]] = {
    "mlp": {"population_size": [1024, 64, 256, 4096], "width": [256, 32, 64, 1024], "depth": [2, 1, 4]},
    "gru": {"population_size": [1024, 64, 256, 4096], "width": [256, 32, 64], "depth": [1]},
    "convnet": {"population_size": [1024, 64, 256], "width": [512], "depth": [1]},
}
"""Default sweep of each model; the first of each list is that of the base point."""
QUICK_SWEEPS: dict[str, dict[str, list[int]]] = {
    "mlp": {"population_size": [256, 64], "width": [64, 32], "depth": [2]},
    "gru": {"population_size": [256, 64], "width": [64, 32], "depth": [1]},
    "convnet": {"population_size": [32, 16], "width": [512], "depth": [1]},
}
FIXED = {"mlp": (), "gru": ("depth",), "convnet": ("width", "depth")}
"""What a model has only one of."""
AXES = {"population_size": "members P", "width": "width of hidden layers", "depth": "hidden layers"}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(SWEEPS), default="mlp", help="(default: %(default)s)")
    for name, what in AXES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs="+",
            metavar="N",
            help=f"{what}: of the base point, then others to put in its place (mlp: "
            f"{' '.join(map(str, SWEEPS['mlp'][name]))})",
        )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure instead what ask, gradient and tell of the base point need in memory, each family in a "
        "process of its own (10000 members)",
    )
    parser.add_argument(
        "--max-gib",
        type=float,
        default=2.0,
        help="memory for dense weights, which run in turns beyond it; independent noise that needs more is "
        "left out (default: %(default)s)",
    )
    add_device_options(parser)
    add_timing_options(parser, rounds=None, rounds_help="7, of --memory 3", seconds=0.1)


def _points(parsed: argparse.Namespace) -> list[Point]:
    lists = dict((QUICK_SWEEPS if parsed.quick else SWEEPS)[parsed.model])
    if parsed.memory:
        lists["population_size"] = [1008] if parsed.quick else [10_000]
        lists |= {name: SWEEPS[parsed.model][name] for name in ("width", "depth")}
    for name in AXES:
        option, given = f"--{name.replace('_', '-')}", getattr(parsed, name)
        if given is None:
            continue
        if name in FIXED[parsed.model]:
            raise UsageError(f"{option} cannot be chosen for --model {parsed.model}")
        if min(given) < 1:
            raise UsageError(f"{option} must be > 0, got {min(given)}")
        lists[name] = given
    for size in lists["population_size"]:
        if size % MULTIPLE:
            raise UsageError(
                f"--population-size must be a multiple of {MULTIPLE} (8 bases, antithetic pairs), got {size}"
            )
    points = sweep(parsed.model, lists["population_size"], lists["width"], lists["depth"])
    return points[:1] if parsed.memory else points


def _run(parsed: argparse.Namespace) -> Report:
    points = _points(parsed)
    if not 0 < parsed.max_gib < math.inf:
        raise UsageError(f"--max-gib must be > 0 and finite, got {parsed.max_gib}")
    try:
        device = checked_device(parsed.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    threads = parsed.threads or available_cores()
    if parsed.rounds is None:
        usual, of_memory = (3, 1) if parsed.quick else (7, 3)
        parsed.rounds = of_memory if parsed.memory else usual
    settings = {
        "model": parsed.model,
        "device": parsed.device,
        "torch_threads": threads,
        "seconds": parsed.seconds,
        "max_gib": parsed.max_gib,
        "seed": parsed.seed,
    }
    with torch_threads(threads):
        if parsed.memory:
            return run_memory(parsed, points[0], device, threads, settings)
        return _sweep(parsed, points, device, settings)


def _sweep(
    parsed: argparse.Namespace, points: Sequence[Point], device: torch.device, settings: Mapping[str, Any]
) -> Report:
    results: list[dict[str, Any]] = []
    with Bar("es-bench policy", len(points)) as bar:
        for point in points:
            name = f"{point.model}, P {point.population_size}, width {point.width}, depth {point.depth}"
            results.append(
                measure_point(
                    point,
                    device,
                    seed=parsed.seed,
                    rounds=parsed.rounds,
                    seconds=parsed.seconds,
                    max_bytes=int(parsed.max_gib * 2**30),
                    watch=bar.subject(name),
                )
            )
    return Report(
        subject=f"{policy_subject(points[0])}_{device.type}",
        body={**settings, "results": results},
        tables=[
            *(make(result) for result in results for make in (_forward_table, _gradient_table)),
            _limits_table(results),
        ],
        device=parsed.device,
    )


def _forward_table(result: Mapping[str, Any]) -> Table:
    """Returns a point's table of forwards."""
    columns = ("forward, ms", "lowest..highest", "/ unperturbed", "dense /", "GFLOP/s", "GB/s")
    table = make_table(f"{result['policy']}, {result['population_size']:,} members", "", *columns)
    seconds, ratios = spreads(result["rounds"]), result["median_ratios"]

    def ratio(name: str) -> str:
        return f"{ratios[name]:.2f}" if name in ratios else ""

    for name in FORWARDS:
        if forward(name) in seconds:
            both = ratio(f"{name} / {UNPERTURBED}"), ratio(f"{DENSE} / {name}")
            rates = _rates(result["achieved"][forward(name)])
            table.add_row(name, *spread_of_ms(seconds[forward(name)]), *both, *rates)
        else:
            table.add_row(name, "", "> --max-gib")
    return table


def _gradient_table(result: Mapping[str, Any]) -> Table:
    """Returns a point's table of what a generation does with its noise."""
    columns = ("ask, ms", "lowest..highest", "gradient, ms", "lowest..highest", "GFLOP/s", "GB/s")
    table = make_table("", "", *columns)
    seconds = spreads(result["rounds"])
    for name in FAMILIES:
        if ask(name) in seconds:
            times = *spread_of_ms(seconds[ask(name)]), *spread_of_ms(seconds[gradient(name)])
            table.add_row(name, *times, *_rates(result["achieved"][gradient(name)]))
    return table


def _rates(achieved: Mapping[str, float]) -> list[str]:
    """Returns FLOP/s and bytes/s, each with its share of what the machine can do."""
    return [
        f"{number(achieved[f'{kind}_per_second'] / 1e9)} ({achieved[f'share_of_{kind}_limit']:.0%})"
        for kind in ("flops", "bytes")
    ]


def _limits_table(results: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table("what the machine can do (100% above)", "limit", "measured at each point")
    for name, kind, unit in ((MATMUL, "flops", "GFLOP/s"), (TRIAD, "bytes", "GB/s")):
        rates = [result["achieved"][name][f"{kind}_per_second"] / 1e9 for result in results]
        table.add_row(name.removeprefix("limit: "), f"{', '.join(map(number, rates))} {unit}")
    return table


def _picture(document: Mapping[str, Any]) -> Picture:
    """Returns seconds of forwards over each size that was varied."""
    results: list[dict[str, Any]] = document["results"]
    base, panels = results[0], list[Panel]()
    if "family" in base:
        return memory_picture(document)
    for axis, label in AXES.items():
        others = [name for name in AXES if name != axis]
        along = {
            result[axis]: spreads(result["rounds"])
            for result in results
            if all(result[name] == base[name] for name in others)
        }
        if len(along) == 1 and (panels or axis != list(AXES)[-1]):
            continue
        curves = {
            name: Curve(
                {x: _in_ms(along[x][forward(name)]) for x in sorted(along) if forward(name) in along[x]}
            )
            for name in FORWARDS
        }
        panels.append(Lines(label, "ms a forward", curves))
    where = f"base point {base['policy']}, P = {base['population_size']}"
    return Picture(f"one forward of a population, {document['device']}: {where}", panels)


def _in_ms(seconds: Spread) -> Spread:
    return Spread(1e3 * seconds.median, 1e3 * seconds.lowest, 1e3 * seconds.highest)


BENCH = Bench(
    name="policy",
    help="a population's forward, noise and gradient by noise family, beside the machine's limits",
    add_options=_add_options,
    quick={"seconds": 0.02},
    run=_run,
    picture=_picture,
)
