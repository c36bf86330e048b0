"""An objective of your own: land a rocket softly with little fuel, in a simulation of ten lines of torch.

python -m examples.land_rocket --generations 60

The simulation has contact and a throttle that cannot go below zero; no gradient flows through it. Every
member lands from the same B heights at once: its inputs are [B, 2], those of the population are [P, B, 2].
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from es_flipout import FlipoutES

GRAVITY, MAX_THRUST, SECONDS = 1.6, 4.0, 0.1


def fly(pilot, heights: Tensor, steps: int = 150) -> tuple[Tensor, Tensor]:
    """Returns the impact speed (the current speed if still in the air, plus the height) and the fuel burned.

    Args:
        pilot: maps height and velocity, [..., 2], to a throttle, [..., 1].
        heights: where the rockets start, at rest; any shape.
        steps: maximum number of time steps.
    """
    height, velocity, fuel = heights, torch.zeros_like(heights), torch.zeros_like(heights)
    for _ in range(steps):
        throttle = pilot(torch.stack([height / 10, velocity / 5], dim=-1)).squeeze(-1).clamp(0, 1)
        up = height > 0
        velocity = torch.where(up, velocity + (MAX_THRUST * throttle - GRAVITY) * SECONDS, velocity)
        height = torch.where(up, height + velocity * SECONDS, height)
        fuel = fuel + torch.where(up, throttle, 0.0) * SECONDS
    return velocity.abs() + height.clamp(min=0), fuel


def train(generations: int, population_size: int = 128, seed: int = 0) -> nn.Module:
    """Trains a pilot, prints how it lands every ten generations, and returns it."""
    torch.manual_seed(seed)
    pilot = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(pilot.parameters(), lr=0.05)
    es = FlipoutES(pilot, population_size=population_size, sigma=0.1, optimizer=optimizer, seed=seed)
    heights = torch.tensor([2.0, 5.0, 10.0, 15.0])
    for generation in range(1, generations + 1):
        population = es.ask()
        impact, fuel = fly(population, heights.expand(population_size, -1))
        update = es.tell(-(impact + 0.1 * fuel).mean(dim=1))
        if generation % 10 == 0:
            with torch.no_grad():
                impact, fuel = fly(pilot, heights)
            print(
                f"generation {generation:>4}  impact {impact.mean():5.2f} m/s  fuel {fuel.mean():5.2f}  "
                f"update/weights {update.update_ratio:.4f}  cosine {update.update_cosine:5.2f}"
            )
    return pilot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--population-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.generations, arguments.population_size, arguments.seed)


if __name__ == "__main__":
    main()
