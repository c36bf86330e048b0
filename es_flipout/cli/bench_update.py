"""es-bench update: seconds of an update of supervised evolution strategies, after the paper's figure 5."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from es_flipout.bench.paper import Kind, Network
from es_flipout.bench.plots import Curve, Lines, Panel, Picture
from es_flipout.bench.report import Spread, spreads
from es_flipout.bench.timing import checked_device, torch_threads
from es_flipout.bench.update import (
    FLIPOUT,
    LOW_RANK,
    ONE_BASE,
    POOL,
    POOLS,
    Settings,
    is_extrapolated,
    measure_network,
)
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import Bench, Report, add_device_options, add_timing_options
from es_flipout.cli.bench_display import Bar, make_table, number
from es_flipout.processes import available_cores
from es_flipout.rollout import WorkerError

CONTESTANTS = (FLIPOUT, ONE_BASE, LOW_RANK, *POOLS)
SIZES: dict[Kind, str] = {
    "fully connected": "hidden size H of 784-H-H-10",
    "convolutional": "scale of the ConvNet",
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hidden-sizes",
        type=int,
        nargs="*",
        default=[32, 128, 512, 2048],
        metavar="H",
        help="fully connected networks 784-H-H-10 (32 128 512 2048)",
    )
    parser.add_argument(
        "--conv-scales",
        type=float,
        nargs="*",
        default=[0.25, 0.75, 1.0, 1.5],
        metavar="S",
        help="ConvNets: 5x5 convolutions of 32 and 64 channels, a layer of 512, times S (0.25 0.75 1 1.5)",
    )
    parser.add_argument(
        "--samples", type=int, default=5000, help="members, an image each (default: %(default)s)"
    )
    parser.add_argument(
        "--members-per-base",
        type=int,
        default=40,
        help="of flipout with several bases (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, help="of the process pools, 0 for no process pool (default: every core)"
    )
    parser.add_argument(
        "--pool-samples",
        type=int,
        help="members that the process pool is measured on; its seconds are extrapolated to --samples "
        "(default: as many as have 500 million weights between them)",
    )
    parser.add_argument(
        "--max-gib",
        type=float,
        default=1.0,
        help="memory for the activations of a batch (default: %(default)s)",
    )
    add_device_options(parser)
    add_timing_options(parser, rounds=3, seconds=0.5)


def _check(parsed: argparse.Namespace) -> None:
    for name in (
        "hidden_sizes",
        "conv_scales",
        "samples",
        "members_per_base",
        "workers",
        "pool_samples",
        "max_gib",
    ):
        values = getattr(parsed, name)
        if name == "workers" and values == 0:
            continue
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be > 0 and finite, got {value}")
    if not parsed.hidden_sizes and not parsed.conv_scales:
        raise UsageError("there is no network to measure: give --hidden-sizes or --conv-scales")
    if parsed.members_per_base % 2:
        raise UsageError(
            f"--members-per-base must be even (antithetic pairs share a base), got {parsed.members_per_base}"
        )
    if parsed.samples % parsed.members_per_base:
        raise UsageError(
            f"--samples must be a multiple of --members-per-base {parsed.members_per_base}, "
            f"got {parsed.samples}"
        )


def _run(parsed: argparse.Namespace) -> Report:
    _check(parsed)
    try:
        device = checked_device(parsed.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = Settings(
        samples=parsed.samples,
        members_per_base=parsed.members_per_base,
        workers=available_cores() if parsed.workers is None else parsed.workers,
        pool_samples=parsed.pool_samples,
        max_bytes=int(parsed.max_gib * 2**30),
        seconds=parsed.seconds,
        rounds=parsed.rounds,
        seed=parsed.seed,
    )
    networks = [Network("fully connected", size) for size in parsed.hidden_sizes]
    networks += [Network("convolutional", scale) for scale in parsed.conv_scales]
    threads = parsed.threads or available_cores()
    results: list[dict[str, Any]] = []
    with torch_threads(threads), Bar("es-bench update", len(networks)) as bar:
        for network in networks:
            watch = bar.subject(f"{network.kind} {network.size:g}")
            try:
                results.append(measure_network(network, device, settings, watch))
            except WorkerError as error:
                raise UsageError(f"the process pool: {error}") from error
    body = {
        "device": parsed.device,
        "torch_threads": threads,
        "samples": settings.samples,
        "members_per_base": settings.members_per_base,
        "workers": settings.workers,
        "seed": settings.seed,
        "paper_is": "Wen et al. (ICLR 2018), figure 5: seconds an update of 5,000 samples, on other machines",
        "results": results,
    }
    tables = [_table(_title(body), results), _spreads_table(results)]
    return Report(f"update_{device.type}", body, tables, parsed.device)


def _title(document: Mapping[str, Any]) -> str:
    what = f"seconds an update of {document['samples']:,} samples, {document['device']}"
    workers = f"{document['workers']} worker{'s' if document['workers'] > 1 else ''}"
    return f"{what}; process pool of {workers}" if document["workers"] else what


def _measured(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the contestants that took part."""
    return [name for name in CONTESTANTS if name in results[0]["medians"]]


def _table(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    names, lead = _measured(results), f"{POOL} / {FLIPOUT}"
    columns = ["pool / flipout"] if POOL in names else []
    table = make_table(title, "", *names, *columns, "FlipES *", "cpuES *", "ratio *")
    for result in results:
        row = [
            ("~" if name in POOLS and is_extrapolated(result) else "") + number(result["medians"][name])
            for name in names
        ]
        row += [number(result["median_ratios"][lead])] if columns else []
        if (figures := result["paper"]) is not None:
            flipout, pool = figures.values()
            row += [f"{flipout:g}", f"{pool:g}", number(pool / flipout)]
        table.add_row(result["name"], *row)
    table.caption = (
        "medians; ~ extrapolated from fewer samples; * the paper's, 5,000 samples on other machines: "
        "FlipES on one GPU, cpuES on 40 cores"
    )
    table.caption_justify = "left"
    return table


def _spreads_table(results: Sequence[Mapping[str, Any]]) -> Table:
    names = _measured(results)
    columns = ["samples of the pool"] if POOL in names else []
    table = make_table("lowest..highest", "", *names, *columns)
    for result in results:
        found = spreads(result["rounds"])
        spans = [f"{number(found[name].lowest)}..{number(found[name].highest)}" for name in names]
        table.add_row(result["name"], *spans, *([f"{result['pool_samples']:,}"] if columns else []))
    return table


def _picture(document: Mapping[str, Any]) -> Picture:
    results, panels = document["results"], list[Panel]()
    for kind, label in SIZES.items():
        own = {result["size"]: result for result in results if result["network"] == kind}
        if not own:
            continue
        extrapolated = ", extrapolated" if any(map(is_extrapolated, own.values())) else ""
        curves = {
            name + (extrapolated if name in POOLS else ""): Curve(
                {size: spreads(own[size]["rounds"])[name] for size in sorted(own)}
            )
            for name in _measured(results)
        }
        known = {size: own[size]["paper"] for size in sorted(own) if own[size]["paper"] is not None}
        for name in next(iter(known.values()), {}):
            points = {size: Spread(*[figures[name]] * 3) for size, figures in known.items()}
            curves[f"paper, 5,000 samples: {name}"] = Curve(points, dashed=True)
        panels.append(Lines(label, "seconds an update", curves))
    return Picture(_title(document), panels)


BENCH = Bench(
    name="update",
    help="seconds of an update of supervised evolution strategies, as in figure 5 of the flipout paper",
    add_options=_add_options,
    quick={"hidden_sizes": [32, 128], "conv_scales": [0.25], "samples": 400, "rounds": 2, "seconds": 0.1},
    run=_run,
    picture=_picture,
)
