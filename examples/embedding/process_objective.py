"""An objective in worker processes, without Ray: a store that decides every day how much to order.

python -m examples.embedding.process_objective --workers 2

The simulation is NumPy: random demand, deliveries that take three days, a fixed price per order, lost
sales. A worker gets the population once per task, which is the policy and the noise in the form of
flipout, and plays the members whose numbers it is given. Every member is played alone on one thread and
returns come back in order, so the result has the same bits with any number of workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from es_flipout import FlipoutES, Population

DAYS, STORES, DELIVERY_DAYS, DEMAND = 60, 64, 3, 5.0
ORDER_PRICE, HOLDING, LOST_SALE = 8.0, 0.2, 4.0
"""Prices: an order of any size; an item in stock overnight; a customer who finds nothing."""
HELD_OUT_SEED = 1_000_000


def daily_cost(policy, seed: int) -> float:
    """Returns the mean cost of a day in `STORES` simulated stores.

    Args:
        policy: maps stock and items on their way [STORES, 1 + DELIVERY_DAYS] to orders [STORES].
        seed: seed of the demand.
    """
    demand = np.random.default_rng(seed).poisson(DEMAND, (DAYS, STORES))
    stock, coming = np.full(STORES, 4 * DEMAND), np.zeros((STORES, DELIVERY_DAYS))
    cost = 0.0
    for today in demand:
        stock = stock + coming[:, 0]
        order = policy(np.column_stack([stock, coming[:, 1:], np.zeros(STORES)]))
        coming = np.column_stack([coming[:, 1:], order])
        sold = np.minimum(stock, today)
        stock = stock - sold
        cost += (ORDER_PRICE * (order > 0) + HOLDING * stock + LOST_SALE * (today - sold)).mean()
    return float(cost / DAYS)


class Buyer:
    """A policy for `daily_cost` around a network of two outputs: whether to order, and how much."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, stores: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(stores / (4 * DEMAND) - 0.5).float()
        whether, amount = self.network(inputs).numpy().T
        return np.where(whether > 0, np.rint(4 * DEMAND * np.exp(amount)), 0.0)


class FixedLevels:
    """The textbook policy: if fewer than `low` items are in stock or on their way, order up to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, stores: np.ndarray) -> np.ndarray:
        items = stores.sum(axis=1)
        return np.where(items < self.low, self.high - items, 0.0)


def best_fixed_levels(seed: int) -> FixedLevels:
    levels = [FixedLevels(low, high) for low in range(10, 31) for high in range(low + 5, 61, 5)]
    return min(levels, key=lambda policy: daily_cost(policy, seed))


def fitness_of(population: Population, seed: int, members: Iterable[int]) -> list[float]:
    """Returns minus the daily cost of some members: the work of a process."""
    return [-daily_cost(Buyer(population.module(member)), seed) for member in members]


def train(
    generations: int = 60, workers: int = 2, population_size: int = 64, seed: int = 0, print_every: int = 10
) -> nn.Module:
    """Trains a network to order, in `workers` processes, or in this one if `workers` is 0."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1 + DELIVERY_DAYS, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    es = FlipoutES(network, population_size=population_size, sigma=0.1, optimizer=optimizer, seed=seed)
    tasks = np.array_split(np.arange(population_size), max(1, 2 * workers))
    with processes(workers) if workers else nullcontext() as executor:
        run = executor.map if executor else map
        for generation in range(1, generations + 1):
            population = es.ask()
            shares = run(fitness_of, [population] * len(tasks), [generation] * len(tasks), tasks)
            es.tell([fitness for share in shares for fitness in share])
            if print_every and generation % print_every == 0:
                print(f"generation {generation:>3}  cost {daily_cost(Buyer(network), HELD_OUT_SEED):.2f}")
    return network


def processes(workers: int) -> Executor:
    """Returns worker processes of one thread each; torch wants them spawned, not forked."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
    fixed = best_fixed_levels(seed=0)
    cost = daily_cost(fixed, HELD_OUT_SEED)
    print(f"best fixed levels, {fixed.low} and {fixed.high}: cost {cost:.2f}")


if __name__ == "__main__":
    main()
