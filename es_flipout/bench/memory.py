"""What a generation's noise costs in memory: ask, gradient and tell, each family in a process of its own.

A process's peak memory never falls, so every measurement starts a fresh one.
"""

from __future__ import annotations

import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from es_flipout.bench.families import FAMILIES, SIGMA
from es_flipout.bench.policy import Point
from es_flipout.bench.report import Figures, Watch, interleave, medians
from es_flipout.bench.timing import synchronize
from es_flipout.processes import end_processes, start_process
from es_flipout.strategy import FlipoutES

STEPS = ("ask", "gradient", "tell")
PEAK = "peak_growth_bytes"
ROWS = 256
"""Rows that a generation's noise is handed to in `ask`, as the slots of an environment are."""


def measure_generation(
    family: str, point: Point, device_name: str, threads: int, seed: int
) -> dict[str, float]:
    """Measures, in this process, the second of two generations, and the memory that both took at most.

    Args:
        family: name of the noise family.
        point: network and population.
        device_name: where.
        threads: torch threads.
        seed: of weights, noise and utilities.

    Returns:
        Seconds of each of STEPS, and PEAK: by how many bytes the process's resident memory, or the memory
        allocated on the GPU, rose above what it was before.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device(device_name)
    policy = point.make_model().module.to(device)

    def strategy(population_size: int) -> FlipoutES:
        perturbation = FAMILIES[family].perturbation
        return FlipoutES(
            policy, population_size=population_size, sigma=SIGMA, perturbation=perturbation, seed=seed
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
    for rows in torch.split(torch.arange(population.size), ROWS):  # as slots take member after member
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


def _serve(connection: Connection, *arguments: Any) -> None:
    connection.send(measure_generation(*arguments))


def _in_a_process(family: str, *arguments: Any) -> dict[str, float]:
    """Returns what `measure_generation` does in a new process."""
    process, connection = start_process(_serve, family, *arguments)
    with closing(connection):
        try:
            measured: dict[str, float] = connection.recv()
        except EOFError as error:
            process.join()
            raise ValueError(
                f"the process that measured {family} died (exit code {process.exitcode}): out of memory?"
            ) from error
    end_processes([process])
    return measured


def measure_memory(
    point: Point, device: torch.device, *, threads: int, seed: int, rounds: int, watch: Watch
) -> list[dict[str, Any]]:
    """Measures a generation of every family, each in a process of its own, in alternating rounds.

    Returns:
        For a JSON document, for each family: seconds of ask, gradient and tell, and the peak growth of memory
        in bytes, by round and in the median.

    Raises:
        ValueError: if a process dies.
    """

    def contestant(family: str) -> Figures:
        measured = _in_a_process(family, point, str(device), threads, seed)
        return {f"{family}: {name}": value for name, value in measured.items()}

    contestants = {family: lambda index, family=family: contestant(family) for family in FAMILIES}
    results = interleave(contestants, rounds, watch)
    found = []
    for family in FAMILIES:
        own = [{name: figures[f"{family}: {name}"] for name in (*STEPS, PEAK)} for figures in results]
        found.append({"family": family, "medians": medians(own), "rounds": own})
    return found
