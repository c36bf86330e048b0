"""Evolution strategies next to a torch training loop: gradients train the encoder, ES the controller.

python -m examples.beside_gradients --generations 40

The task is to push a point in the plane to the origin and hold it there, seen only through 32 noisy sensors.
The encoder learns to compress what the population has seen (an autoencoder, by back-propagation); the
controller on top of it learns from returns alone. Each has its own optimizer, independent of the other.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout import FlipoutES

NUM_SENSORS, NUM_FEATURES, STEPS = 32, 6, 40


class Sensors:
    """Sensor readings of positions and velocities [..., 4]: 32 squashed, noisy mixtures of them."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.mixture = torch.randn(4, NUM_SENSORS, generator=generator)

    def __call__(self, state: Tensor) -> Tensor:
        noise = torch.randn(*state.shape[:-1], NUM_SENSORS, generator=self.generator)
        return torch.tanh(state @ self.mixture) + 0.1 * noise


@torch.no_grad()
def roll_out(controller, encoder: nn.Module, sensors: Sensors, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cost of each start and all sensor readings.

    Args:
        controller: maps features [..., 6] to forces [..., 2]; a module or a population.
        encoder: maps readings [..., 32] to features.
        sensors: reads the state.
        state: positions and velocities at the start, [..., 4].
    """
    seen, cost = [], torch.zeros(state.shape[:-1])
    for _ in range(STEPS):
        readings = sensors(state)
        force = torch.tanh(controller(encoder(readings)))
        velocity = 0.95 * state[..., 2:] + 0.2 * force
        state = torch.cat([state[..., :2] + 0.2 * velocity, velocity], dim=-1)
        cost = cost + state[..., :2].norm(dim=-1) / STEPS
        seen.append(readings.flatten(0, -2))
    return cost, torch.cat(seen)


def train(generations: int, population_size: int = 64, seed: int = 0) -> float:
    """Prints the mean distance from the origin every ten generations and returns the last one."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sensors = Sensors(generator)
    encoder = nn.Sequential(nn.Linear(NUM_SENSORS, 32), nn.Tanh(), nn.Linear(32, NUM_FEATURES))
    decoder = nn.Sequential(nn.Linear(NUM_FEATURES, 32), nn.Tanh(), nn.Linear(32, NUM_SENSORS))
    by_gradient = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    controller = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.Tanh(), nn.Linear(16, 2))
    by_evolution = FlipoutES(controller, population_size=population_size, sigma=0.1, seed=seed)
    distance = float("nan")
    for generation in range(1, generations + 1):
        population = by_evolution.ask()
        starts = torch.randn(8, 4, generator=generator) * torch.tensor([1.0, 1.0, 0.0, 0.0])
        cost, seen = roll_out(population, encoder, sensors, starts.expand(population_size, -1, -1))
        by_evolution.tell(-cost.mean(dim=1))
        for batch in seen[torch.randperm(len(seen), generator=generator)[:4096]].split(256):
            loss = F.mse_loss(decoder(encoder(batch)), batch)
            by_gradient.zero_grad()
            loss.backward()
            by_gradient.step()
        if generation % 10 == 0:
            cost, _ = roll_out(controller, encoder, sensors, starts)
            distance = float(cost.mean())
            print(f"generation {generation:>4}  reconstruction {loss:.4f}  mean distance {distance:.3f}")
    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.generations, arguments.population_size, arguments.seed)


if __name__ == "__main__":
    main()
