"""A noise family of your own: the directions of a generation are orthogonal to each other.

python -m examples.noise_family

Orthogonal directions never measure the same thing twice (Choromanski et al., 2018, arXiv 1804.02395).
With D directions of n weights, the rows of an orthonormal [D, n] matrix times sqrt(n) are noise of
variance 1 per weight. There are at most n of them, so a larger population gets several sets. The noise is
dense, like `Independent()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from es_flipout import FlipoutES, Independent, Perturbation
from es_flipout.perturbations import DenseTable, PopulationNoise, num_directions


@dataclass(frozen=True)
class Orthogonal(Perturbation):
    """Dense noise whose directions are orthogonal and equally long, for policies of one dtype."""

    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> PopulationNoise:
        """Draws the noise of a generation; see `Perturbation.sample`."""
        count = num_directions(population_size, antithetic)
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        width = sum(shape.numel() for shape in shapes.values())
        (dtype,) = {parameter.dtype for parameter in parameters.values()}
        sets = []
        while count > 0:
            size = min(count, width)
            drawn = torch.randn(width, size, generator=generator, dtype=dtype, device=generator.device)
            columns, triangle = torch.linalg.qr(drawn)
            columns = columns * triangle.diagonal().sign()  # uniform: QR alone prefers some signs
            sets.append(columns.mT * width**0.5)
            count -= size
        return PopulationNoise([DenseTable(torch.cat(sets), shapes)], population_size, antithetic)


def error_of_gradient(perturbation: Perturbation, population_size: int = 128, generations: int = 50) -> float:
    """Returns the relative error |g - w|² / |w|² of the estimate for the fitness w · weights, a mean."""
    layer = nn.Linear(16, 8, bias=False)
    target = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    errors = []
    for seed in range(generations):
        es = FlipoutES(
            layer, population_size=population_size, sigma=0.1, perturbation=perturbation, seed=seed
        )
        population = es.ask()
        fitness = torch.stack(
            [(population.member(m)["weight"] * target).sum() for m in range(population_size)]
        )
        estimate = population.gradient(fitness.detach())["weight"]
        errors.append(float((estimate - target).square().sum() / target.square().sum()))
    return sum(errors) / len(errors)


def main() -> None:
    for perturbation in (Independent(), Orthogonal()):
        print(f"{perturbation}: relative error {error_of_gradient(perturbation):.2f}")


if __name__ == "__main__":
    main()
