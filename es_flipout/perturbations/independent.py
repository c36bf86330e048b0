"""Independent noise: each member has a dense noise tensor of its own for every parameter.

The textbook estimator, at the price of P times the policy's memory and one matrix product a member.
Here it is the oracle of the other families, and the slow baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.perturbations.base import NoiseRows, ParameterNoise, Perturbation, PopulationNoise


@dataclass(frozen=True)
class DenseNoise(ParameterNoise):
    """Noise of one parameter, written out for every row: `values` is [N, *parameter shape]."""

    values: Tensor

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `ParameterNoise.add_linear`."""
        # Not a batched matrix product: that rounds a row differently by the number of rows, see rowwise.py.
        num_rows, *shape = self.values.shape
        values = self.values.view(num_rows, *(1,) * (inputs.ndim - 2), *shape)
        return outputs + (values * inputs.unsqueeze(-2)).sum(dim=-1)

    def dense(self) -> Tensor:
        """See `ParameterNoise.dense`."""
        return self.values


class IndependentRows(NoiseRows):
    """Dense noise of N rows, all parameters side by side in one matrix."""

    def __init__(self, noise: IndependentNoise, members: Tensor, scale: float) -> None:
        self._noise = noise
        self._scale = scale
        self._values = noise.of(members, scale)
        super().__init__({name: DenseNoise(values) for name, values in noise.by_name(self._values).items()})

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """See `NoiseRows.assign`."""
        self._values[rows] = self._noise.of(members, self._scale)


class IndependentNoise(PopulationNoise):
    """Dense noise of D directions, D = P or, mirrored, P / 2.

    Attributes:
        values: noise of each direction, all parameters side by side, [D, number of weights].
        shapes: shape of each parameter, by name, in the order in which they lie there.
    """

    def __init__(
        self, values: Tensor, shapes: Mapping[str, torch.Size], population_size: int, mirrored: bool
    ) -> None:
        super().__init__(population_size, mirrored)
        self.values = values
        self.shapes = shapes

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Returns views of [..., number of weights] as [..., *shape], by parameter name."""
        parts = values.split_with_sizes([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*values.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def of(self, members: Tensor, scale: float) -> Tensor:
        """Returns scale * eps_m of members [N], all parameters side by side, [N, number of weights]."""
        direction, orientation = self.directions(members)
        return self.values[direction] * (orientation.to(self.values.dtype) * scale).unsqueeze(1)

    def rows(self, members: Tensor, scale: float) -> IndependentRows:
        """See `PopulationNoise.rows`."""
        return IndependentRows(self, members, scale)

    def member(self, index: int) -> dict[str, Tensor]:
        """See `PopulationNoise.member`."""
        return self.by_name(self.of(torch.tensor([index], device=self.values.device), 1.0)[0])

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        return self.by_name(self.direction_weights(weights).to(self.values.dtype) @ self.values)


@dataclass(frozen=True)
class Independent(Perturbation):
    """Gaussian noise, dense and independent from member (or mirrored pair) to member."""

    mirrored: bool = True

    def sample(
        self, parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator
    ) -> IndependentNoise:
        """See `Perturbation.sample`."""
        count = self.num_directions(population_size)
        return sample_dense(parameters, count, population_size, self.mirrored, generator)


def sample_dense(
    parameters: Mapping[str, Tensor],
    num_directions: int,
    population_size: int,
    mirrored: bool,
    generator: torch.Generator,
) -> IndependentNoise:
    """Draws standard normal noise of D directions for parameters, which must share one dtype and device."""
    shapes = {name: value.shape for name, value in parameters.items()}
    size = sum(shape.numel() for shape in shapes.values())
    if len({value.dtype for value in parameters.values()}) > 1:
        raise ValueError(f"parameters must have one dtype: {', '.join(parameters)} have several")
    like = next(iter(parameters.values()), torch.zeros(0, device=generator.device))
    values = torch.randn(num_directions, size, generator=generator, dtype=like.dtype, device=like.device)
    return IndependentNoise(values, shapes, population_size, mirrored)
