"""What a generation's noise costs in memory: ask, gradient and tell, each family in a process of its own.

A process's peak memory never falls, so every measurement starts a fresh one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import policy
from benchmarks.speed.families import FAMILIES, SIGMA
from benchmarks.speed.timing import synchronize, turns
from es_flipout.cli.results import Results
from es_flipout.processes import Worker, end_workers
from es_flipout.strategy import FlipoutES

STEPS = ("ask, s", "gradient, s", "tell, s")
PEAK = "peak growth of memory, bytes"
"""Metrics."""
ROWS = 256
"""Rows that a generation's noise is handed to in `ask`, as the envs of a batch are."""
SIZES = {"population_size": [10_000], "width": [256], "depth": [2]}
DEFAULTS = {"rounds": 3, "seconds": 0.0}


def measure_generation(
    family: str, point: policy.Point, device: torch.device, threads: int, seed: int
) -> dict[str, float]:
    """Measures, in this process, the second of two generations, and the memory that both took at most.

    Args:
        family: name of the noise family.
        point: network and population.
        device: where.
        threads: torch threads.
        seed: of weights, noise and utilities.

    Returns:
        Seconds of each of STEPS, and PEAK: by how many bytes the process's resident memory, or the memory
        allocated on the GPU, rose above what it was before.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    module = point.make_model().module.to(device)

    def strategy(population_size: int) -> FlipoutES:
        perturbation = FAMILIES[family].perturbation
        return FlipoutES(
            module, population_size=population_size, sigma=SIGMA, perturbation=perturbation, seed=seed
        )

    small = strategy(16)
    small.ask()
    small.tell(torch.randn(16))  # loads every library that the large generations use
    before = _memory(device, peak=False)
    es = strategy(point.population_size)
    seconds: dict[str, float] = {}
    for _ in range(2):
        seconds = _generation(es, device)
    return {**seconds, PEAK: _memory(device, peak=True) - before}


def _generation(es: FlipoutES, device: torch.device) -> dict[str, float]:
    utilities = torch.randn(es.population_size)
    times = [time.perf_counter()]

    def stamp() -> None:
        synchronize(device)
        times.append(time.perf_counter())

    population = es.ask()
    for rows in torch.split(torch.arange(population.size), ROWS):  # as envs take member after member
        population.select(rows)
    stamp()
    population.gradient(utilities)
    stamp()
    es.tell(utilities)
    stamp()
    return {name: times[index + 1] - times[index] for index, name in enumerate(STEPS)}


def _memory(device: torch.device, *, peak: bool) -> int:
    """Returns the bytes allocated on a GPU, or resident in this process; now, or the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    field = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith(field)).split()[1])


def _serve(connection: Any, *arguments: Any) -> None:
    connection.send(measure_generation(*arguments))


def in_a_process(*arguments: Any) -> dict[str, float]:
    """Returns what `measure_generation` does in a new process.

    Raises:
        WorkerDiedError: if the process dies, for example out of memory.
    """
    worker = Worker(_serve, *arguments)
    try:
        measured: dict[str, float] = worker.receive()
        return measured
    finally:
        end_workers([worker])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench: those of the first point of `policy`."""
    policy.add_options(parser)


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures a generation of every family, in alternating rounds."""
    sizes = {**SIZES, "depth": policy.SWEEPS[options.model]["depth"][:1]}
    point = policy.points(options, sizes)[0]
    results.settings["policy"] = point.make_model().name
    results.settings["population_size"] = point.population_size
    for index, family in turns(FAMILIES, options.rounds):
        figures = in_a_process(family, point, options.device, options.threads, options.seed)
        results.add(index, family, figures)
