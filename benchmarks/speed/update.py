"""Seconds of one update of supervised evolution strategies, in one batch and by a process pool.

After figure 5 of the flipout paper (Wen, Vicol, Ba, Tran and Grosse, ICLR 2018): every member classifies one
28x28 image, and an update is ask, the cross entropy of all members, tell (Adam). The images are random: no
time depends on what is on them. In one batch: flipout with a base for every N members, as in the paper,
flipout with a single base, and noise of rank one. The workers of the process pool rebuild one member after
the other from its seed: with flipout's noise, the cheapest to rebuild and to sum up; and with independent
noise, as the paper's cpuES has it, all of which this process must draw once more for the gradient.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.families import SIGMA
from benchmarks.speed.paper import Network
from benchmarks.speed.timing import Stopwatch, available_device, turns
from es_flipout.cli.results import Results
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.processes import available_cores
from es_flipout.rollout import BaselinePlayer, Episodes
from es_flipout.strategy import FlipoutES

FLIPOUT, ONE_BASE, LOW_RANK = "flipout", "flipout, 1 base", "low rank 1"
POOL, INDEPENDENT_POOL = "process pool, flipout", "process pool, independent"
POOLS: dict[str, Perturbation] = {POOL: Flipout(), INDEPENDENT_POOL: Independent()}
POOL_WEIGHTS = 500_000_000
"""Members times weights that the process pool is measured on at most, unless it is told otherwise."""
FEWEST = 2
"""Members for each worker in the smaller of two updates that a larger one is extrapolated from."""
UPDATE = "update, s"
"""The metric; where a process pool is extrapolated, `of_members` has those of the sizes measured."""
DEFAULTS = {"rounds": 3, "seconds": 0.5}


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
    """A `Rollout` that scores a policy on one example, whose index is the seed."""

    observation_size: int | None = None

    def __init__(self, examples: Examples) -> None:
        """Draws the examples."""
        self._images, self._labels = examples.draw()

    def play(self, policy: nn.Module, episodes: Episodes, row: int) -> None:
        """Plays an episode of one step, whose reward is minus the cross entropy; see `Rollout`."""
        example = episodes.reset_seed[row : row + 1]
        loss = F.cross_entropy(policy(self._images[example]), self._labels[example])
        episodes.record(np.array([row]), np.array([-float(loss)]), np.array([1]))

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
            examples: one per member.
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
        self._player = BaselinePlayer(policy, partial(ExampleRollout, examples), num_workers=workers)

    def __call__(self, samples: int) -> None:
        """Makes an update of all members, or of `FEWEST` per worker."""
        es = self._es[samples]
        episodes = Episodes.of_population(range(samples), block_size=1)
        es.tell(self._player.play(es.ask(), episodes).fitness)

    def close(self) -> None:
        """Ends the workers."""
        self._player.close()


def _strategy(policy: nn.Module, perturbation: Perturbation, size: int, seed: int) -> FlipoutES:
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    return FlipoutES(
        policy, population_size=size, sigma=SIGMA, optimizer=optimizer, perturbation=perturbation, seed=seed
    )


def of_members(count: int) -> str:
    """Returns the metric of an update of so many members, not all of them."""
    return f"{UPDATE}, of {count} members"


def pool_size(samples: int, num_parameters: int, workers: int, wanted: int | None = None) -> int:
    """Returns the members that a process pool is measured on, an even number."""
    count = max(wanted or POOL_WEIGHTS // num_parameters, 2 * FEWEST * workers)
    return min(count, samples) // 2 * 2


def on_a_line(one: tuple[float, float], other: tuple[float, float], x: float) -> float:
    """Returns y at x of the straight line through two points (x, y)."""
    slope = (other[1] - one[1]) / (other[0] - one[0])
    return other[1] + slope * (x - other[0])


def extrapolated(watches: dict[int, Stopwatch], samples: int) -> dict[str, float]:
    """Measures updates of two sizes, and returns both and that of all samples, on the line through them."""
    (few, of_few), (many, of_many) = ((count, watch()) for count, watch in watches.items())
    seconds = on_a_line((few, of_few), (many, of_many), samples)
    return {UPDATE: seconds, of_members(few): of_few, of_members(many): of_many}


def measure_network(results: Results, network: Network, options: argparse.Namespace) -> None:
    """Measures the updates of one network, in alternating rounds.

    A process pool that is measured on fewer members than there are samples has its seconds from the straight
    line through these and those of `FEWEST` members per worker.
    """
    model = network.make_model()
    shape, samples, workers = model.input_shapes[0], options.samples, options.workers
    size = pool_size(samples, model.num_parameters, workers, options.pool_samples) if workers else None
    facts = {"kind": network.kind, "size": network.size, "parameters": model.num_parameters}
    results.settings["networks"][model.name] = {**facts, "pool_samples": size, "paper": network.paper}
    cpu, max_bytes = torch.device("cpu"), int(options.max_gib * 2**30)
    families: dict[str, Perturbation] = {
        FLIPOUT: Flipout(num_bases=samples // options.members_per_base),
        ONE_BASE: Flipout(),
        LOW_RANK: LowRank(1),
    }
    print(model.name, file=sys.stderr)
    measures: dict[str, Callable[[], dict[str, float]]] = {}

    def timed(watch: Stopwatch) -> Callable[[], dict[str, float]]:
        return lambda: {UPDATE: watch()}

    with ExitStack() as stack:
        examples = Examples(shape, samples, options.seed)
        for name, family in families.items():
            update = BatchUpdate(network, family, examples, options.device, max_bytes)
            measures[name] = timed(Stopwatch(update, options.device, options.seconds))
        for name, family in POOLS.items() if size else ():
            pool = PoolUpdate(network, family, Examples(shape, size, options.seed), workers)
            stack.enter_context(closing(pool))
            sizes = [size] if size == samples else [FEWEST * workers, size]
            watches = {count: Stopwatch(partial(pool, count), cpu, options.seconds) for count in sizes}
            whole = size == samples
            measures[name] = timed(watches[size]) if whole else partial(extrapolated, watches, samples)
        for index, name in turns(measures, options.rounds):
            results.add(index, name, measures[name](), network=model.name)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    connected = "fully connected networks 784-H-H-10"
    option("--hidden-sizes", type=int, nargs="*", default=[32, 128, 512, 2048], metavar="H", help=connected)
    scales = "ConvNets: 5x5 convolutions of 32 and 64 channels, a layer of 512, times S"
    option("--conv-scales", type=float, nargs="*", default=[0.25, 0.75, 1.0, 1.5], metavar="S", help=scales)
    option("--samples", type=int, default=5000, help="members, an image each")
    option("--members-per-base", type=int, default=40, help="of flipout with several bases")
    option("--workers", type=int, default=available_cores(), help="of the process pools, 0 for none")
    option("--pool-samples", type=int, help="members that the process pools are measured on")
    option("--max-gib", type=float, default=1.0, help="memory for the activations of a batch")
    option("--device", type=available_device, default="cpu")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures every network.

    Raises:
        ValueError: if the samples cannot share bases evenly.
    """
    if options.members_per_base % 2 or options.samples % options.members_per_base:
        raise ValueError(
            f"--samples must be a multiple of --members-per-base, and that be even (antithetic pairs share a "
            f"base), got {options.samples} and {options.members_per_base}"
        )
    results.settings["networks"] = {}
    networks = [Network("fully connected", size) for size in options.hidden_sizes]
    networks += [Network("convolutional", scale) for scale in options.conv_scales]
    for network in networks:
        measure_network(results, network, options)
