"""The gradient estimate of several populations, whoever computes its tiles."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from es_flipout.estimate import mean_gradient, signal_to_noise
from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation, Tile, compute_here
from es_flipout.population import Population

P = 8


class Recorder:
    """Computes tiles, and remembers which it was asked for."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Tile]] = []

    def __call__(self, tiles: Sequence[Tile]) -> list[Tensor]:
        self.calls.append(tiles)
        return compute_here(tiles)


def populations_of(perturbation: Perturbation, count: int, sigma: float = 0.1) -> list[Population]:
    policy, generator = nn.Linear(300, 150), torch.Generator().manual_seed(0)
    return [
        Population(policy, perturbation.sample(trained_parameters(policy), P, generator), sigma)
        for _ in range(count)
    ]


def utilities_of(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("perturbation", [Flipout(2), LowRank(), Independent()], ids=str)
def test_the_tiles_of_all_populations_are_handed_over_at_once(perturbation: Perturbation) -> None:
    populations, utilities, recorder = populations_of(perturbation, 3), utilities_of(3 * P), Recorder()
    gradient = mean_gradient(populations, utilities, recorder)
    parts = list(zip(populations, utilities.split(P), strict=True))
    (tiles,) = recorder.calls
    assert len(tiles) == sum(len(population.gradient_tiles(part)) for population, part in parts)
    first, *others = (population.gradient(part) for population, part in parts)
    for name, total in first.items():
        for other in others:
            total += other[name]
        assert torch.equal(gradient[name], total / 3)


def test_populations_without_sigma_have_no_tiles() -> None:
    recorder = Recorder()
    gradient = mean_gradient(populations_of(Flipout(), 2, sigma=0.0), utilities_of(2 * P), recorder)
    assert recorder.calls == [[]]
    assert {name: value.abs().sum().item() for name, value in gradient.items()} == {"weight": 0, "bias": 0}


def test_signal_to_noise_is_of_the_values_that_it_is_given() -> None:
    populations, utilities = populations_of(Flipout(), 2), utilities_of(2 * P)
    gradient, recorder = mean_gradient(populations, utilities), Recorder()
    members = torch.arange(2 * P)
    ratio = signal_to_noise(populations, utilities, gradient, members, recorder)
    assert ratio == signal_to_noise(populations, utilities, gradient, members)
    assert len(recorder.calls) == 1
    # Half of the sum as the first half's: (g / 2 . 3 g / 2) / (|g|² / 4) = 3.
    half = {"weight": gradient["weight"] / 2, "bias": gradient["bias"] / 2}
    scale = 2 * P * 0.1  # each population's sum is scaled by 1 / (P sigma), and half of their sum is meant

    def halves(tiles: Sequence[Tile]) -> list[Tensor]:
        values = [half["weight"] * scale, half["bias"] * scale]
        return values + [torch.zeros_like(value) for value in values]

    assert signal_to_noise(populations, utilities, gradient, members, halves) == pytest.approx(3)
