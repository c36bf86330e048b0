"""What perturbed policies cost: forwards of a population, its noise, its gradient, by noise family.

At every point of a sweep (population, width, depth) all contestants take turns: the unperturbed forward on
the same batch, the forward under each family's noise, the forward under dense weights for every member
(batched matrix products), each family's `ask` and gradient, and the machine's limits. On a GPU forwards are
replays of CUDA graphs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from es_flipout.bench.families import FAMILIES, INDEPENDENT, SIGMA
from es_flipout.bench.models import Model, conv_net, dense_forward, gru, mlp
from es_flipout.bench.report import Figures, Ratio, Watch, compared, interleave, medians
from es_flipout.bench.timing import MATMUL, TRIAD, Operation, Stopwatch, limits
from es_flipout.bench.work import total
from es_flipout.strategy import FlipoutES

ModelName = Literal["mlp", "gru", "convnet"]
INPUTS, OUTPUTS = 348, 17
"""Humanoid-v5's observation and action."""
UNPERTURBED, DENSE = "unperturbed", "dense"
FORWARDS = [UNPERTURBED, *FAMILIES, DENSE]
"""Whose forward is timed."""


def forward(name: str) -> str:
    """Returns what the forward of a family, UNPERTURBED or DENSE is called."""
    return f"forward: {name}"


def ask(family: str) -> str:
    """Returns what it is called to draw a family's noise and hand every row its own."""
    return f"ask: {family}"


def gradient(family: str) -> str:
    """Returns what the gradient of a family is called."""
    return f"gradient: {family}"


@dataclass(frozen=True)
class Point:
    """A point of the sweep.

    Attributes:
        model: kind of network.
        population_size: members P, one row each.
        width: of hidden layers, or of the GRU's state; the ConvNet's is fixed.
        depth: hidden layers of an MLP; the others' is fixed.
    """

    model: ModelName
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
    model: ModelName, population_sizes: Sequence[int], widths: Sequence[int], depths: Sequence[int]
) -> list[Point]:
    """Returns the base point, of the first of each, and those that differ from it in one respect."""
    base = Point(model, population_sizes[0], widths[0], depths[0])
    points = [base]
    points += [replace(base, population_size=size) for size in population_sizes[1:]]
    points += [replace(base, width=width) for width in widths[1:]]
    points += [replace(base, depth=depth) for depth in depths[1:]]
    return list(dict.fromkeys(points))


def operations(model: Model, population_size: int, seed: int, max_bytes: int) -> dict[str, Operation]:
    """Returns all that is timed at a point, by name.

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
    found: dict[str, Operation] = {}
    plain = total(layer.unperturbed(population_size) for layer in model.layers)
    found[forward(UNPERTURBED)] = Operation(lambda: policy(*inputs), plain, is_forward=True)
    for name, family in FAMILIES.items():
        if name == INDEPENDENT and not _fits(model, population_size, max_bytes):
            continue
        es = FlipoutES(
            policy, population_size=population_size, sigma=SIGMA, perturbation=family.perturbation, seed=seed
        )
        rows = es.ask().select(torch.arange(population_size))
        utilities = torch.randn(population_size, device=device)
        added = total(family.work.added(layer, population_size) for layer in model.layers)
        kept = total(family.work.ask(layer, directions) for layer in model.layers)
        summed = total(family.work.gradient(layer, directions) for layer in model.layers)
        found[forward(name)] = Operation(partial(rows, *inputs), plain + added, is_forward=True)
        found[ask(name)] = Operation(partial(_ask, es), kept)
        found[gradient(name)] = Operation(partial(es.ask().gradient, utilities), summed)
    found[forward(DENSE)] = Operation(
        dense_forward(model, inputs, max_bytes),
        total(layer.dense(population_size) for layer in model.layers),
        is_forward=True,
    )
    return found


def _fits(model: Model, population_size: int, max_bytes: int) -> bool:
    """Whether the noise of pairs and of every row fit."""
    return 4 * population_size * model.num_parameters * 3 // 2 <= max_bytes


def _ask(es: FlipoutES) -> None:
    """Draws another population, and hands every member's noise to a row: some noise is not drawn before."""
    es.ask()  # forgets the one before
    es.ask_more().select(torch.arange(es.population_size))


@torch.no_grad()
def measure_point(
    point: Point,
    device: torch.device,
    *,
    seed: int,
    rounds: int,
    seconds: float,
    max_bytes: int,
    watch: Watch,
) -> dict[str, Any]:
    """Measures everything at a point.

    Args:
        point: the point.
        device: where.
        seed: of weights, inputs and noise.
        rounds: number of rounds.
        seconds: least duration of a measurement.
        max_bytes: see `operations`.
        watch: see `report.Watch`.

    Returns:
        For a JSON document: the point, seconds of each operation by round and in the median, ratios of
        forwards, and of each operation its work and what it achieved.
    """
    torch.manual_seed(seed)
    model = point.make_model()
    model.module.to(device)
    watch("warm-up", 0.0)
    timed = {**operations(model, point.population_size, seed, max_bytes), **limits(device)}
    watches = {name: Stopwatch(name, each.on(device), device, seconds) for name, each in timed.items()}
    results = interleave(watches, rounds, watch)
    return {
        "policy": model.name,
        **asdict(point),
        "parameters": model.num_parameters,
        "medians": medians(results),
        "achieved": {name: achieved(name, timed, results) for name in timed},
        **compared(results, forward_ratios(timed)),
    }


def forward_ratios(names: Iterable[str]) -> dict[str, Ratio]:
    """Returns the ratios of forwards: of each to the unperturbed one, and of the dense one to each."""
    names = set(names)
    measured = [name for name in FORWARDS if forward(name) in names]

    def ratio(one: str, other: str) -> Callable[[Figures], float]:
        return lambda seconds: seconds[forward(one)] / seconds[forward(other)]

    ratios = {f"{name} / {UNPERTURBED}": ratio(name, UNPERTURBED) for name in measured[1:]}
    return ratios | {f"{DENSE} / {name}": ratio(DENSE, name) for name in measured[1:-1]}


def achieved(name: str, timed: Mapping[str, Operation], rounds: Sequence[Figures]) -> dict[str, float]:
    """Returns an operation's work and rates, and their shares of the machine's limits in the same round."""
    work = timed[name].work

    def rate(of: str, seconds: Figures, kind: str) -> float:
        return float(getattr(timed[of].work, kind)) / seconds[of]

    figures: dict[str, float] = asdict(work)
    for kind, limit in (("flops", MATMUL), ("bytes", TRIAD)):
        rates = [rate(name, seconds, kind) for seconds in rounds]
        best = [rate(limit, seconds, kind) for seconds in rounds]
        figures[f"{kind}_per_second"] = statistics.median(rates)
        figures[f"share_of_{kind}_limit"] = statistics.median(x / y for x, y in zip(rates, best, strict=True))
    return figures
