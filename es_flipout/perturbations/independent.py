"""Independent noise: each member has a dense noise tensor of its own for every parameter.

The textbook estimator, at the price of P times the policy's memory and one matrix product a member.
Here it is the oracle of the other families, and the slow baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.packing import Packed, accumulation_dtype, by_dtype
from es_flipout.perturbations.parameter_noise import DenseNoise, ParameterNoise


class IndependentNoise(PopulationNoise):
    """Dense noise of D directions; one pack a dtype."""

    def of_parameters(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.of_parameters`."""
        return {name: DenseNoise(value) for pack in values for name, value in pack.items()}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        weights = self.direction_weights(weights)
        total: dict[str, Tensor] = {}
        for pack in self.packs:
            dtype = accumulation_dtype(pack.values.dtype)
            total |= pack.by_name((weights.to(dtype) @ pack.values.to(dtype)).to(pack.values.dtype))
        return total


@dataclass(frozen=True)
class Independent(Perturbation):
    """Gaussian noise, dense and independent from member (or antithetic pair) to member."""

    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> IndependentNoise:
        """See `Perturbation.sample`."""
        return sample_dense(parameters, population_size, generator, antithetic)


def sample_dense(
    parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator, antithetic: bool
) -> IndependentNoise:
    """Draws standard normal noise of P members for parameters."""
    count = num_directions(population_size, antithetic)
    packs = []
    for dtype, group in by_dtype(parameters).items():
        shapes = {name: value.shape for name, value in group.items()}
        size = sum(shape.numel() for shape in shapes.values())
        values = torch.randn(count, size, generator=generator, dtype=dtype, device=generator.device)
        packs.append(Packed(values, shapes))
    return IndependentNoise(packs, population_size, antithetic)
