"""What perturbed policies cost: forwards of a population, its noise, its gradient, by noise family.

At every point of a sweep (population, width, depth) all contestants take turns: the unperturbed forward on
the same batch, the forward under each family's noise, the forward under dense weights for every member
(batched matrix products), each family's `ask` and gradient, and the machine's limits. On a GPU forwards are
replays of CUDA graphs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.speed.families import FAMILIES, INDEPENDENT, MULTIPLE, SIGMA
from benchmarks.speed.models import Model, conv_net, dense_forward, gru, mlp
from benchmarks.speed.timing import Operation, Stopwatch, available_device, limits, turns
from benchmarks.speed.work import total
from es_flipout.cli.results import Results
from es_flipout.strategy import FlipoutES

INPUTS, OUTPUTS = 348, 17
"""Humanoid-v5's observation and action."""
UNPERTURBED, DENSE = "unperturbed", "dense"
FORWARD, ASK, GRADIENT, LIMIT = "forward", "ask", "gradient", "limit"
"""Operations. Each has the metrics `NAME, s` and, in the first round, `NAME, FLOP` and `NAME, bytes`."""
SWEEPS: dict[str, dict[str, list[int]]] = {
    "mlp": {"population_size": [1024, 64, 256, 4096], "width": [256, 32, 64, 1024], "depth": [2, 1, 4]},
    "gru": {"population_size": [1024, 64, 256, 4096], "width": [256, 32, 64], "depth": [1]},
    "convnet": {"population_size": [1024, 64, 256], "width": [512], "depth": [1]},
}
"""Default sweep of each model; the first of each list is that of the base point."""
DEFAULTS = {"rounds": 7, "seconds": 0.1}


@dataclass(frozen=True)
class Point:
    """A point of the sweep.

    Attributes:
        model: kind of network.
        population_size: members P, one row each.
        width: of hidden layers, or of the GRU's state; the ConvNet's is fixed.
        depth: hidden layers of an MLP; the others' is fixed.
    """

    model: str
    population_size: int
    width: int
    depth: int

    def make_model(self) -> Model:
        """Returns the network."""
        if self.model == "gru":
            return gru(INPUTS, self.width, OUTPUTS)
        if self.model == "convnet":
            return conv_net()
        return mlp([INPUTS, *[self.width] * self.depth, OUTPUTS])


def sweep(
    model: str, population_sizes: Sequence[int], widths: Sequence[int], depths: Sequence[int]
) -> list[Point]:
    """Returns the base point, of the first of each, and those that differ from it in one respect."""
    base = Point(model, population_sizes[0], widths[0], depths[0])
    points = [base]
    points += [replace(base, population_size=size) for size in population_sizes[1:]]
    points += [replace(base, width=width) for width in widths[1:]]
    points += [replace(base, depth=depth) for depth in depths[1:]]
    return list(dict.fromkeys(points))


def operations(
    model: Model, population_size: int, seed: int, max_bytes: int
) -> dict[tuple[str, str], Operation]:
    """Returns all that is timed at a point, by contestant and operation.

    Args:
        model: the network, on the device that is measured.
        population_size: members P.
        seed: of inputs, noise and utilities.
        max_bytes: memory for the weights of the dense forward, and for independent noise: the family is left
            out if it needs more.
    """
    torch.manual_seed(seed)
    policy, device = model.module, next(model.module.parameters()).device
    inputs = model.inputs(population_size, device)
    directions = population_size // 2
    found: dict[tuple[str, str], Operation] = {}
    plain = total(layer.unperturbed(population_size) for layer in model.layers)
    found[UNPERTURBED, FORWARD] = Operation(lambda: policy(*inputs), plain, is_forward=True)
    for name, family in FAMILIES.items():
        of_pairs_and_rows = 4 * population_size * model.num_parameters * 3 // 2
        if name == INDEPENDENT and of_pairs_and_rows > max_bytes:
            continue
        es = FlipoutES(
            policy, population_size=population_size, sigma=SIGMA, perturbation=family.perturbation, seed=seed
        )
        rows = es.ask().select(torch.arange(population_size))
        utilities = torch.randn(population_size, device=device)
        added = total(family.work.added(layer, population_size) for layer in model.layers)
        kept = total(family.work.ask(layer, directions) for layer in model.layers)
        summed = total(family.work.gradient(layer, directions) for layer in model.layers)
        found[name, FORWARD] = Operation(partial(rows, *inputs), plain + added, is_forward=True)
        found[name, ASK] = Operation(partial(_ask, es), kept)
        found[name, GRADIENT] = Operation(partial(es.ask().gradient, utilities), summed)
    found[DENSE, FORWARD] = Operation(
        dense_forward(model, inputs, max_bytes),
        total(layer.dense(population_size) for layer in model.layers),
        is_forward=True,
    )
    return found


def _ask(es: FlipoutES) -> None:
    """Draws another population, and hands every member's noise to a row: some noise is not drawn before."""
    es.ask()  # forgets the one before
    es.ask_more().select(torch.arange(es.population_size))


@torch.no_grad()
def measure_point(results: Results, point: Point, options: argparse.Namespace) -> None:
    """Measures everything at a point, in alternating rounds."""
    torch.manual_seed(options.seed)
    model = point.make_model()
    model.module.to(options.device)
    size = point.population_size
    facts = {"width": point.width, "depth": point.depth, "parameters": model.num_parameters}
    results.settings["policies"][model.name] = facts
    timed = operations(model, size, options.seed, int(options.max_gib * 2**30))
    timed |= {(name, LIMIT): each for name, each in limits(options.device).items()}
    print(f"{model.name}, P = {size:,}", file=sys.stderr)
    watches = {
        key: Stopwatch(each.on(options.device), options.device, options.seconds)
        for key, each in timed.items()
    }
    names = {f"{operation}: {name}": (name, operation) for name, operation in timed}
    for index, label in turns(names, options.rounds):
        name, operation = names[label]
        figures = {f"{operation}, s": watches[name, operation]()}
        if index == 0:
            work = timed[name, operation].work
            figures |= {f"{operation}, FLOP": work.flops, f"{operation}, bytes": work.bytes}
        results.add(index, name, figures, policy=model.name, population_size=size)


def points(options: argparse.Namespace, sizes: dict[str, list[int]]) -> list[Point]:
    """Returns the points that the options ask for, where they say nothing those of `sizes`.

    Raises:
        argparse.ArgumentTypeError: if a population cannot be shared out over bases.
    """
    lists = {name: getattr(options, name) or default for name, default in sizes.items()}
    if wrong := [size for size in lists["population_size"] if size % MULTIPLE]:
        message = (
            f"--population-size must be a multiple of {MULTIPLE} (8 bases, antithetic pairs), got {wrong[0]}"
        )
        raise argparse.ArgumentTypeError(message)
    return sweep(options.model, *lists.values())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--model", choices=list(SWEEPS), default="mlp")
    for name in SWEEPS["mlp"]:
        what = f"{name} of the base point, then others to put in its place"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=int, nargs="+", help=what)
    memory = "for dense weights, which run in turns beyond it; independent noise that needs more is left out"
    parser.add_argument("--max-gib", type=float, default=2.0, help=memory)
    parser.add_argument("--device", type=available_device, default="cpu")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures every point of the sweep."""
    results.settings["policies"] = {}
    for point in points(options, SWEEPS[options.model]):
        measure_point(results, point, options)
