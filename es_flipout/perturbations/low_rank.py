"""Low-rank noise: a member's noise of a weight is the product of two thin random factors.

Sarkar et al., "Evolution Strategies at the Hyperscale" (EGGROLL), arXiv 2511.16652. For a weight W[J, I],
member m has, with A_m [J, r] and B_m [I, r] of independent standard normal entries,

    eps_m = A_m B_mᵀ / sqrt(r)              x eps_mᵀ = (x B_m) A_mᵀ / sqrt(r)

which costs no matrix product over the weight at all, only r dot products a row. Weighted by w_m the noise
sums to Σ_m w_m A_m B_mᵀ / sqrt(r), one matrix product over P r. Its entries have mean 0 and variance 1 and
are uncorrelated, but for small r far from normal: products of two normals.

A weight of more dimensions counts as the matrix [J, everything else]. Parameters with fewer than two get
dense Gaussian noise a member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.independent import IndependentNoise, sample_dense
from es_flipout.perturbations.packing import Packed, accumulation_dtype, by_dtype
from es_flipout.perturbations.parameter_noise import (
    Convolution,
    DenseNoise,
    ParameterNoise,
    aligned,
    lookup,
)


@dataclass(frozen=True)
class LowRankRows(ParameterNoise):
    """Low-rank noise of one weight for N rows.

    Attributes:
        left: Aᵀ, times scale and orientation, [N, r, J].
        right: Bᵀ, [N, r, I, ...].
    """

    left: Tensor
    right: Tensor

    def _add_left(self, outputs: Tensor, inner: Tensor) -> Tensor:
        """Adds inner @ left, inner [N, ..., r], to outputs [N, ..., J]."""
        rank, batch = inner.shape[-1], inner.shape[1:-1].numel()
        if rank > 1 and batch > 1:
            return outputs + (inner.flatten(1, -2) @ self.left).view(outputs.shape)
        for index in range(rank):
            outputs.addcmul_(inner[..., index : index + 1], aligned(self.left[:, index], outputs.ndim))
        return outputs

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `ParameterNoise.add_linear`."""
        zeros = inputs.new_zeros(*inputs.shape[:-1], self.right.shape[1])
        return self._add_left(outputs, DenseNoise(self.right).add_linear(zeros, inputs))

    def add_bilinear(self, outputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """See `ParameterNoise.add_bilinear`."""
        zeros = first.new_zeros(*first.shape[:-1], self.right.shape[1])
        return self._add_left(outputs, DenseNoise(self.right).add_bilinear(zeros, first, second))

    def add_convolution(self, outputs: Tensor, inputs: Tensor, convolution: Convolution) -> Tensor:
        """See `ParameterNoise.add_convolution`."""
        groups, rank = convolution.groups, self.right.shape[1]
        left = (
            torch.unflatten(self.left, 2, (groups, -1)).permute(0, 2, 3, 1).unsqueeze(1)
        )  # [N, 1, groups, J/groups, r]
        right = self.right.repeat(1, groups, *(1,) * (self.right.ndim - 2))  # every group has the same Bᵀ
        if convolution.transposed:
            grouped = torch.unflatten(inputs, 2, (groups, -1)).flatten(4)
            inner = (left.mT @ grouped).view(*inputs.shape[:2], groups * rank, *inputs.shape[3:])
            return outputs + convolution.of_rows(inner, right)
        inner = torch.unflatten(convolution.of_rows(inputs, right), 2, (groups, rank)).flatten(4)
        if rank == 1:
            grouped = outputs.view(*inputs.shape[:2], groups, -1, inner.shape[-1])
            return grouped.addcmul_(left, inner).view(outputs.shape)
        return outputs + (left @ inner).view(outputs.shape)

    def add_embedding(self, outputs: Tensor, indices: Tensor) -> Tensor:
        """See `ParameterNoise.add_embedding`."""
        return self.transposed()._add_left(outputs, lookup(self.left.mT, indices))

    def transposed(self) -> LowRankRows:
        """See `ParameterNoise.transposed`."""
        return LowRankRows(self.right, self.left)

    def narrowed(self, dim: int, start: int, length: int) -> LowRankRows:
        """See `ParameterNoise.narrowed`."""
        if dim == 0:
            return LowRankRows(self.left.narrow(2, start, length), self.right)
        return LowRankRows(self.left, self.right.narrow(dim + 1, start, length))

    def dense(self) -> Tensor:
        """See `ParameterNoise.dense`."""
        product = self.left.mT @ self.right.flatten(2)
        return torch.unflatten(product, 2, self.right.shape[2:])


class LowRankNoise(PopulationNoise):
    """The factors of D directions."""

    def __init__(self, names: Sequence[str], factors: Sequence[Packed], vectors: IndependentNoise) -> None:
        """Takes what was drawn.

        Args:
            names: the weights.
            factors: packed for the weights of each dtype: of weight W, "left W" [r, J], over sqrt(r), and
                "right W" [r, I, ...].
            vectors: the noise of all other parameters.
        """
        super().__init__([*factors, *vectors.packs], vectors.population_size, vectors.antithetic)
        self.names = names
        self.vectors = vectors
        self._factors = factors

    def of_parameters(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.of_parameters`."""
        factors = {name: value for pack in values[: len(self._factors)] for name, value in pack.items()}
        matrices = {
            name: LowRankRows(factors[f"left {name}"], factors[f"right {name}"]) for name in self.names
        }
        return {**matrices, **self.vectors.of_parameters(values[len(self._factors) :])}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        total = self.vectors.weighted_sum(weights)
        weights = self.direction_weights(weights)
        factors = {name: value for pack in self._factors for name, value in pack.by_name(pack.values).items()}
        for name in self.names:
            left, right = factors[f"left {name}"], factors[f"right {name}"]
            dtype = accumulation_dtype(left.dtype)
            weighted = left.to(dtype) * weights.to(dtype).view(-1, 1, 1)
            product = weighted.flatten(0, 1).mT @ right.to(dtype).flatten(2).flatten(0, 1)
            total[name] = torch.unflatten(product, 1, right.shape[2:]).to(left.dtype)
        return total


@dataclass(frozen=True)
class LowRank(Perturbation):
    """Low-rank noise for weights of two dimensions or more, dense Gaussian noise for everything else.

    Attributes:
        rank: r.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be >= 1, got {self.rank}")

    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> LowRankNoise:
        """See `Perturbation.sample`."""
        count = num_directions(population_size, antithetic)

        def draw(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)

        weights = {name: value for name, value in parameters.items() if value.ndim >= 2}
        packs = []
        for dtype, group in by_dtype(weights).items():
            left: dict[str, Tensor] = {}
            right: dict[str, Tensor] = {}
            for name, weight in group.items():
                left[f"left {name}"] = draw(count, self.rank, weight.shape[0], dtype=dtype)
                left[f"left {name}"] /= math.sqrt(self.rank)
                right[f"right {name}"] = draw(count, self.rank, *weight.shape[1:], dtype=dtype)
            packs.append(Packed.of(left, right, dtype))
        vectors = {name: value for name, value in parameters.items() if value.ndim < 2}
        return LowRankNoise(
            list(weights), packs, sample_dense(vectors, population_size, generator, antithetic)
        )
