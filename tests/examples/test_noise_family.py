"""The noise family of examples/noise_family.py keeps the contract, and is what it says."""

import pytest
import torch
from torch import nn

from es_flipout import FlipoutES, Independent
from examples.noise_family import Orthogonal, error_of_gradient


@pytest.mark.parametrize("population_size", [8, 80])
def test_rows_and_gradient_are_those_of_the_members(population_size: int) -> None:
    policy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    es = FlipoutES(policy, population_size=population_size, sigma=0.3, perturbation=Orthogonal())
    population = es.ask()
    x = torch.randn(population_size, 3, dtype=torch.float64)
    alone = torch.stack([population.module(m)(x[m]) for m in range(population_size)])
    torch.testing.assert_close(population(x), alone)
    utilities = torch.randn(population_size, dtype=torch.float64)
    noise = [population.noise.member(m) for m in range(population_size)]
    for name, gradient in population.gradient(utilities).items():
        total = sum(u * eps[name] for u, eps in zip(utilities, noise, strict=True))
        torch.testing.assert_close(gradient, total / (population_size * 0.3))


def test_directions_are_orthogonal_with_unit_variance_and_pairs_are_opposite() -> None:
    layer = nn.Linear(5, 4, bias=False)
    noise = FlipoutES(layer, population_size=40, sigma=0.1, perturbation=Orthogonal()).ask().noise
    rows = torch.stack([noise.member(m)["weight"].flatten() for m in range(40)])
    torch.testing.assert_close(rows[::2], -rows[1::2])
    torch.testing.assert_close(rows[::2] @ rows[::2].mT, 20 * torch.eye(20), atol=1e-4, rtol=0)


def test_it_estimates_better_than_independent_noise() -> None:
    assert error_of_gradient(Orthogonal(), generations=10) < 0.7 * error_of_gradient(
        Independent(), generations=10
    )
