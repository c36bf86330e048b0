"""es-bench policy --memory: what a generation's noise needs in memory, by noise family."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from es_flipout.bench.memory import PEAK, STEPS, measure_memory
from es_flipout.bench.plots import Bars, Picture
from es_flipout.bench.policy import Point
from es_flipout.bench.report import Spread
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import Report
from es_flipout.cli.bench_display import Bar, make_table, number


def policy_subject(point: Point) -> str:
    """Returns how the files of es-bench policy begin."""
    return "policy" if point.model == "mlp" else f"policy_{point.model}"


def run_memory(
    parsed: argparse.Namespace,
    point: Point,
    device: torch.device,
    threads: int,
    settings: Mapping[str, Any],
) -> Report:
    """Measures a generation's noise, and says what it took.

    Args:
        parsed: the command line.
        point: network and population.
        device: where.
        threads: torch threads.
        settings: what the document says first.
    """
    with Bar("es-bench policy --memory") as bar:
        try:
            results = measure_memory(
                point, device, threads=threads, seed=parsed.seed, rounds=parsed.rounds, watch=bar.subject()
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    name = point.make_model().name
    title = _title(name, point.population_size, device.type)
    table = make_table(title, "noise", *(f"{step}, s" for step in STEPS), "memory, MB")
    for result in results:
        seconds = [number(result["medians"][step]) for step in STEPS]
        table.add_row(result["family"], *seconds, f"{result['medians'][PEAK] / 1e6:,.0f}")
    return Report(
        subject=f"{policy_subject(point)}_memory_{device.type}",
        body={**settings, "policy": name, "population_size": point.population_size, "results": results},
        tables=[table],
        device=parsed.device,
    )


def memory_picture(document: Mapping[str, Any]) -> Picture:
    """Returns the picture of a document of es-bench policy --memory."""
    megabytes = {
        result["family"]: Spread.of([figures[PEAK] / 1e6 for figures in result["rounds"]])
        for result in document["results"]
    }
    return Picture(
        _title(document["policy"], document["population_size"], document["device"]),
        [Bars("peak growth of memory, MB", megabytes, log=True)],
    )


def _title(policy: str, members: int, device: str) -> str:
    return f"a generation's noise: {policy}, {members:,} members, {device}"
