"""Plain functions of a vector: FlipoutES with dense noise against CMA-ES and differential evolution.

pip install cma
python -m benchmarks.vectors --json benchmarks/results/vectors.json

All get the same number of evaluations and the same starting point, uniform in [-5, 5]. FlipoutES has one
setting: 100 members, Adam, sigma from 1 and the learning rate from 0.3, both falling to a thousandth.
CMA-ES is pycma with its own population size and with 100 members; differential evolution is SciPy's, in
the box [-5, 5]. The table has the median of the lowest value over seeds, as docs/faq.md shows it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import nn

from es_flipout import FlipoutES, Independent
from es_flipout.run.machine import describe_machine

Function = Callable[[np.ndarray], np.ndarray]
EVALUATIONS = 20_000
DIMENSIONS = (10, 100)
END = 1e-3


def sphere(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(axis=-1)


def ellipsoid(x: np.ndarray) -> np.ndarray:
    return (10 ** np.linspace(0, 6, x.shape[-1]) * x**2).sum(axis=-1)


def rosenbrock(x: np.ndarray) -> np.ndarray:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(axis=-1)


def rastrigin(x: np.ndarray) -> np.ndarray:
    return (10 + x**2 - 10 * np.cos(2 * np.pi * x)).sum(axis=-1)


class Vector(nn.Module):
    """A vector as a policy without inputs."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.from_numpy(x))


def by_flipout_es(
    function: Function, x0: np.ndarray, evaluations: int, seed: int, members: int = 100
) -> float:
    vector = Vector(x0.copy())
    optimizer = torch.optim.Adam(vector.parameters(), lr=0.3, betas=(0.9, 0.99))
    es = FlipoutES(
        vector,
        population_size=members,
        sigma=1.0,
        optimizer=optimizer,
        perturbation=Independent(),
        seed=seed,
    )
    lowest, generations = np.inf, evaluations // members
    for generation in range(generations):
        es.sigma = END ** (generation / generations)
        optimizer.param_groups[0]["lr"] = 0.3 * es.sigma
        population = es.ask()
        values = function(np.stack([population.member(m)["x"].numpy() for m in range(members)]))
        lowest = min(lowest, values.min())
        es.tell(-values)
    return float(lowest)


def by_cma_es(
    function: Function, x0: np.ndarray, evaluations: int, seed: int, members: int | None = None
) -> float:
    import cma

    never_early = {"tolfun": 0, "tolfunhist": 0, "tolx": 0, "tolstagnation": 10**9, "tolflatfitness": 10**9}
    options = {"seed": seed + 1, "maxfevals": evaluations, "verbose": -9, **never_early}
    if members is not None:
        options["popsize"] = members
    strategy = cma.CMAEvolutionStrategy(x0, 1.0, options)
    while not strategy.stop():
        points = strategy.ask()
        strategy.tell(points, function(np.array(points)).tolist())
    return float(strategy.result.fbest)


def by_differential_evolution(function: Function, x0: np.ndarray, evaluations: int, seed: int) -> float:
    result = differential_evolution(
        lambda columns: function(columns.T),
        [(-5.0, 5.0)] * len(x0),
        x0=x0,
        popsize=15,
        maxiter=evaluations // (15 * len(x0)) - 1,
        tol=0,
        polish=False,
        vectorized=True,
        updating="deferred",
        rng=seed,
    )
    return float(result.fun)


METHODS = {
    "FlipoutES": by_flipout_es,
    "CMA-ES": by_cma_es,
    "CMA-ES, 100 members": partial(by_cma_es, members=100),
    "differential evolution": by_differential_evolution,
}


def compare(
    functions: list[Function], sizes: Sequence[int], evaluations: int, methods: list[str], seeds: range
) -> list[dict]:
    """Prints the table and returns its rows."""
    rows = []
    for dimensions in sizes:
        for function in functions:
            row: dict = {"function": function.__name__, "dimensions": dimensions, "evaluations": evaluations}
            for name in methods:
                starts = [np.random.default_rng(seed).uniform(-5, 5, dimensions) for seed in seeds]
                row[name] = [
                    METHODS[name](function, start, evaluations, seed)
                    for seed, start in zip(seeds, starts, strict=True)
                ]
            rows.append(row)
            medians = "".join(f"{name} {statistics.median(row[name]):.2g}  " for name in methods)
            print(f"{row['function']:11}{dimensions:4}  {medians}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = compare(
        [sphere, ellipsoid, rosenbrock, rastrigin],
        DIMENSIONS,
        EVALUATIONS,
        list(METHODS),
        range(options.seeds),
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
