"""Seconds of one update of supervised evolution strategies, in one batch and by a process pool.

After figure 5 of the flipout paper (Wen, Vicol, Ba, Tran and Grosse, ICLR 2018): every member classifies one
28x28 image, and an update is ask, the cross entropy of all members, tell (Adam). The images are random: no
time depends on what is on them. In one batch: flipout with a base for every N members, as in the paper,
flipout with a single base, and noise of rank one. The workers of the process pool rebuild one member after
the other from its seed: with flipout's noise, the cheapest to rebuild and to sum up; and with independent
noise, as the paper's cpuES has it, all of which this process must draw once more for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout.bench.families import SIGMA
from es_flipout.bench.paper import Network
from es_flipout.bench.report import Contestant, Figures, Ratio, Watch, compared, interleave, medians
from es_flipout.bench.timing import Stopwatch
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.rollout import Episode, ProcessPoolEvaluator
from es_flipout.strategy import FlipoutES

FLIPOUT, ONE_BASE, LOW_RANK = "flipout", "flipout, 1 base", "low rank 1"
POOL, INDEPENDENT_POOL = "process pool, flipout", "process pool, independent"
POOLS: dict[str, Perturbation] = {POOL: Flipout(), INDEPENDENT_POOL: Independent()}
POOL_WEIGHTS = 500_000_000
"""Members times weights that the process pool is measured on at most, unless it is told otherwise."""
FEWEST = 2
"""Members for each worker in the smaller of two updates that a larger one is extrapolated from."""


@dataclass(frozen=True)
class Examples:
    """Random images of `shape` with labels, one for each of `count` members, drawn where they are needed."""

    shape: tuple[int, ...]
    count: int
    seed: int

    def draw(self) -> tuple[Tensor, Tensor]:
        """Returns images [count, *shape] and labels [count]."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.count, *self.shape, generator=generator)
        return images, torch.randint(10, (self.count,), generator=generator)


class ExampleRollout:
    """An `evaluators.Rollout` that scores a policy on one example, whose index is the seed."""

    observation_size: int | None = None

    def __init__(self, examples: Examples) -> None:
        """Draws the examples."""
        self._images, self._labels = examples.draw()

    def __call__(self, policy: nn.Module, seed: int, episode_limit: int | None) -> Episode:
        """See `Rollout`: the reward is minus the cross entropy."""
        one = slice(seed, seed + 1)
        return Episode(-float(F.cross_entropy(policy(self._images[one]), self._labels[one])), length=1)

    def close(self) -> None:
        """Has nothing to close."""


class BatchUpdate:
    """An update with all members in one batch, or in as few as fit into memory."""

    def __init__(
        self,
        network: Network,
        perturbation: Perturbation,
        examples: Examples,
        device: torch.device,
        max_bytes: int,
    ) -> None:
        """Makes network and strategy.

        Args:
            network: what is trained.
            perturbation: noise family.
            examples: one a member.
            device: where.
            max_bytes: memory for what the layers make of a batch, about.
        """
        torch.manual_seed(examples.seed)
        model = network.make_model()
        self._es = _strategy(model.module.to(device), perturbation, examples.count, examples.seed)
        self._images, self._labels = (each.to(device) for each in examples.draw())
        at_once = max(1, max_bytes // (4 * 4 * sum(layer.row for layer in model.layers)))
        self._parts = torch.split(torch.arange(examples.count), at_once)

    def __call__(self) -> None:
        """Makes an update."""
        population = self._es.ask()
        self._es.tell(torch.cat([self.fitness(population.select(part), part) for part in self._parts]))

    def fitness(self, rows: Any, part: Tensor) -> Tensor:
        """Returns minus the cross entropy of members `part` [M], given as rows, each on its own example."""
        members = part.to(self._images.device)
        return -F.cross_entropy(rows(self._images[members]), self._labels[members], reduction="none")


class PoolUpdate:
    """An update with members evaluated in worker processes: all of them, or the first few."""

    def __init__(
        self, network: Network, perturbation: Perturbation, examples: Examples, workers: int
    ) -> None:
        """Starts the workers."""
        torch.manual_seed(examples.seed)
        policy = network.make_model().module
        sizes = {examples.count, FEWEST * workers}
        self._es = {size: _strategy(policy, perturbation, size, examples.seed) for size in sizes}
        self._evaluator = ProcessPoolEvaluator(policy, partial(ExampleRollout, examples), num_workers=workers)

    def __call__(self, samples: int) -> None:
        """Makes an update of all members, or of `FEWEST` a worker."""
        es = self._es[samples]
        es.tell(self._evaluator.evaluate(es.ask(), range(samples)).fitness)

    def close(self) -> None:
        """Ends the workers."""
        self._evaluator.close()


def _strategy(policy: nn.Module, perturbation: Perturbation, size: int, seed: int) -> FlipoutES:
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    return FlipoutES(
        policy, population_size=size, sigma=SIGMA, optimizer=optimizer, perturbation=perturbation, seed=seed
    )


@dataclass(frozen=True)
class Settings:
    """What an update is measured with.

    Attributes:
        samples: members P, each with an example of its own.
        members_per_base: N.
        workers: of each process pool; 0 for no process pool.
        pool_samples: members that a process pool is measured on, whose seconds are extrapolated to P; None to
            go by the size of the network.
        max_bytes: see `BatchUpdate`.
        seconds: least duration of a measurement.
        rounds: number of rounds.
        seed: of everything.
    """

    samples: int
    members_per_base: int
    workers: int
    pool_samples: int | None
    max_bytes: int
    seconds: float
    rounds: int
    seed: int

    def pool_size(self, num_parameters: int) -> int:
        """Returns the members that the process pool is measured on, an even number."""
        wanted = max(self.pool_samples or POOL_WEIGHTS // num_parameters, 2 * FEWEST * self.workers)
        return min(wanted, self.samples) // 2 * 2


def measure_network(
    network: Network, device: torch.device, settings: Settings, watch: Watch
) -> dict[str, Any]:
    """Measures the updates of one network, in alternating rounds.

    Returns:
        For a JSON document: the network, seconds of an update by contestant and round and in the median,
        ratios of the process pool to the others, and the paper's figures. A pool that is measured on
        `pool_samples` members only has its seconds from the straight line through these and those of `FEWEST`
        members a worker, which stand beside them.

    Raises:
        ValueError: if samples cannot share bases evenly.
    """
    model = network.make_model()
    shape, size = model.input_shapes[0], settings.samples
    pools = POOLS if settings.workers else {}
    pool_size = settings.pool_size(model.num_parameters) if pools else None
    families: dict[str, Perturbation] = {
        FLIPOUT: Flipout(num_bases=size // settings.members_per_base),
        ONE_BASE: Flipout(),
        LOW_RANK: LowRank(1),
    }
    watch("warm-up", 0.0)
    with ExitStack() as stack:
        examples = Examples(shape, size, settings.seed)
        contestants: dict[str, Any] = {
            name: Stopwatch(
                name,
                BatchUpdate(network, family, examples, device, settings.max_bytes),
                device,
                settings.seconds,
            )
            for name, family in families.items()
        }
        for name, family in pools.items():
            assert pool_size is not None
            pool = PoolUpdate(network, family, Examples(shape, pool_size, settings.seed), settings.workers)
            stack.enter_context(closing(pool))
            contestants[name] = _pool_contestant(name, pool, pool_size, settings)
        rounds = interleave(contestants, settings.rounds, watch)
    return {
        "network": network.kind,
        "size": network.size,
        "name": model.name,
        "parameters": model.num_parameters,
        "pool_samples": pool_size,
        "paper": network.paper,
        "medians": medians(rounds),
        **compared(rounds, pool_ratios(families) if pools else {}),
    }


def _pool_contestant(name: str, pool: PoolUpdate, pool_size: int, settings: Settings) -> Contestant:
    """Returns what measures a pool's update of all samples, or of fewer, and then extrapolates."""
    cpu, few = torch.device("cpu"), FEWEST * settings.workers
    if pool_size == settings.samples:
        return Stopwatch(name, partial(pool, pool_size), cpu, settings.seconds)
    watches = {
        samples: Stopwatch(f"{name}, {samples} samples", partial(pool, samples), cpu, settings.seconds)
        for samples in (few, pool_size)
    }

    def measure(index: int) -> Figures:
        figures = {samples: watch(index) for samples, watch in watches.items()}
        (of_few,), (of_many,) = (each.values() for each in figures.values())
        seconds = on_a_line((few, of_few), (pool_size, of_many), settings.samples)
        return {name: seconds, **figures[few], **figures[pool_size]}

    return measure


def is_extrapolated(result: Mapping[str, Any]) -> bool:
    """Returns whether the process pools of a result of `measure_network` ran fewer samples than the rest."""
    return any(f"{name}, {result['pool_samples']} samples" in result["medians"] for name in POOLS)


def on_a_line(one: tuple[float, float], other: tuple[float, float], x: float) -> float:
    """Returns y at x of the straight line through two points (x, y)."""
    slope = (other[1] - one[1]) / (other[0] - one[0])
    return other[1] + slope * (x - other[0])


def pool_ratios(names: Iterable[str]) -> dict[str, Ratio]:
    """Returns the ratios of the process pools to the others."""

    def ratio(pool: str, name: str) -> Ratio:
        return lambda seconds: seconds[pool] / seconds[name]

    return {f"{pool} / {name}": ratio(pool, name) for name in names for pool in POOLS}
