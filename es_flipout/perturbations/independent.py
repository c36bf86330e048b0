"""Independent noise: each member has a dense noise tensor of its own for every parameter.

The textbook estimator, at the price of P times the policy's memory and one matrix product a member.
Here it is the oracle of the other families, and the slow baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.perturbations.base import ParameterNoise, Perturbation, PopulationNoise


@dataclass(frozen=True)
class DenseNoise(ParameterNoise):
    """Noise of one parameter, written out for every row: `values` is [N, *parameter shape]."""

    values: Tensor

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `ParameterNoise.add_linear`."""
        return outputs + torch.einsum("nji,n...i->n...j", self.values, inputs)

    def dense(self) -> Tensor:
        """See `ParameterNoise.dense`."""
        return self.values

    def assign(self, rows: Tensor, noise: DenseNoise) -> None:
        """See `ParameterNoise.assign`."""
        self.values[rows] = noise.values


class IndependentNoise(PopulationNoise):
    """Dense noise: `directions_by_name[name]` is [D, *shape], D = P or, mirrored, P / 2."""

    def __init__(self, noise: Mapping[str, Tensor], population_size: int, mirrored: bool) -> None:
        super().__init__(population_size, mirrored)
        self.noise = noise

    def rows(self, members: Tensor, scale: float) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.rows`."""
        direction, orientation = self.directions(members)
        rows: dict[str, ParameterNoise] = {}
        for name, noise in self.noise.items():
            factor = (orientation.to(noise.dtype) * scale).view(-1, *(1,) * (noise.ndim - 1))
            rows[name] = DenseNoise(noise[direction] * factor)
        return rows

    def member(self, index: int) -> dict[str, Tensor]:
        """See `PopulationNoise.member`."""
        direction, orientation = self.directions(torch.tensor(index))
        return {name: noise[direction] * orientation for name, noise in self.noise.items()}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        weights = self.direction_weights(weights)
        return {
            name: torch.tensordot(weights.to(noise.dtype), noise, dims=1)
            for name, noise in self.noise.items()
        }


@dataclass(frozen=True)
class Independent(Perturbation):
    """Gaussian noise, dense and independent from member (or mirrored pair) to member."""

    mirrored: bool = True

    def sample(
        self, parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator
    ) -> IndependentNoise:
        """See `Perturbation.sample`."""
        count = self.num_directions(population_size)
        noise = {
            name: torch.randn(
                count, *value.shape, generator=generator, dtype=value.dtype, device=value.device
            )
            for name, value in parameters.items()
        }
        return IndependentNoise(noise, population_size, self.mirrored)
