"""Low-rank noise: a member's noise of a weight is the product of two thin random factors.

Sarkar et al., "Evolution Strategies at the Hyperscale" (EGGROLL), arXiv 2511.16652. For a weight W[J, I],
member m has, with A_m [J, r] and B_m [I, r] of independent standard normal entries,

    eps_m = A_m B_mᵀ / sqrt(r)              x eps_mᵀ = (x B_m) A_mᵀ / sqrt(r)

which costs no matrix product over the weight at all, only r dot products per row. Weighted by w_m the noise
sums to Σ_m w_m A_m B_mᵀ / sqrt(r), one matrix product over P r. Its entries have mean 0 and variance 1 and
are uncorrelated, but for small r far from normal: products of two normals.

A weight of more dimensions counts as the matrix [J, everything else]. Parameters with fewer than two get
dense Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.choices import RANK
from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.noise_table import (
    NoiseTable,
    accumulation_dtype,
    draw_dense,
    matrices_and_vectors,
    side_by_side,
)
from es_flipout.perturbations.parameter_noise import (
    Convolution,
    DenseRows,
    ParameterNoise,
    aligned,
    lookup,
)
from es_flipout.perturbations.row_groups import RowGroups
from es_flipout.perturbations.tiles import Tile, joined, tiles_of


@dataclass(frozen=True)
class LowRank(Perturbation):
    """Low-rank noise for weights of two dimensions or more, dense Gaussian noise for everything else.

    Attributes:
        rank: r.
    """

    rank: int = RANK

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be >= 1, got {self.rank}")

    @override
    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> PopulationNoise:
        count = num_directions(population_size, antithetic)

        def draw(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)

        matrices, vectors = matrices_and_vectors(parameters)
        tables: list[NoiseTable] = []
        for dtype, group in matrices.items():
            left: dict[str, Tensor] = {}
            right: dict[str, Tensor] = {}
            for name, weight in group.items():
                left[name] = draw(count, self.rank, weight.shape[0], dtype=dtype) / math.sqrt(self.rank)
                right[name] = draw(count, self.rank, *weight.shape[1:], dtype=dtype)
            tables.append(LowRankTable(left, right))
        tables += draw_dense(vectors, count, generator)
        return PopulationNoise(tables, population_size, antithetic)


class LowRankTable(NoiseTable):
    """The factors of D directions."""

    def __init__(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
        """Takes, by parameter name, Aᵀ / sqrt(r) [D, r, J] and Bᵀ [D, r, I, ...]."""
        oriented = {f"left {name}": factor for name, factor in left.items()}
        values, shapes = side_by_side(oriented | {f"right {name}": factor for name, factor in right.items()})
        super().__init__(values, shapes, values.dtype, sum(factor[0].numel() for factor in left.values()))
        self._weights = {name: (left[name].shape[2], *factor.shape[2:]) for name, factor in right.items()}

    @override
    def by_parameter(self, values: Tensor, groups: RowGroups | None) -> dict[str, ParameterNoise]:
        parts = self.split(values)
        return {name: LowRankRows(parts[f"left {name}"], parts[f"right {name}"]) for name in self._weights}

    @override
    def tiles(self, weights: Tensor, *, squared: bool) -> list[Tile]:
        if squared:
            raise ValueError("low-rank noise has no squares of low rank")
        dtype, parts = accumulation_dtype(self.dtype), self.split(self.values)
        weights = weights.to(dtype).view(-1, 1, 1)

        @lru_cache(maxsize=1)  # for all tiles of a weight, which follow each other
        def weighted_factors(name: str) -> tuple[Tensor, Tensor]:
            left, right = parts[f"left {name}"].to(dtype), parts[f"right {name}"].to(dtype)
            return (left * weights).flatten(0, 1), right.flatten(2).flatten(0, 1)

        def rows_of(name: str, rows: slice) -> Tensor:
            left, right = weighted_factors(name)
            return torch.unflatten(left[:, rows].mT @ right, 1, self._weights[name][1:])

        return [
            tile
            for name, shape in self._weights.items()
            for tile in tiles_of(shape, self.dtype, self.values.device, partial(rows_of, name))
        ]

    @override
    def assembled(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        return {name: joined(values, shape) for name, shape in self._weights.items()}

    @override
    def pin(self, name: str, entry: int) -> None:
        if name in self._weights:
            self.split(self.values)[f"left {name}"][:, :, entry] = 0


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

    @override
    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        zeros = inputs.new_zeros(*inputs.shape[:-1], self.right.shape[1])
        return self._add_left(outputs, DenseRows(self.right).add_linear(zeros, inputs))

    @override
    def add_bilinear(self, outputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        zeros = first.new_zeros(*first.shape[:-1], self.right.shape[1])
        return self._add_left(outputs, DenseRows(self.right).add_bilinear(zeros, first, second))

    @override
    def add_convolution(self, outputs: Tensor, inputs: Tensor, convolution: Convolution) -> Tensor:
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

    @override
    def add_embedding(self, outputs: Tensor, indices: Tensor) -> Tensor:
        return self.transposed()._add_left(outputs, lookup(self.left.mT, indices))

    @override
    def transposed(self) -> LowRankRows:
        return LowRankRows(self.right, self.left)

    @override
    def detached(self) -> LowRankRows:
        return LowRankRows(self.left.detach(), self.right.detach())

    @override
    def narrowed(self, dim: int, start: int, length: int) -> LowRankRows:
        if dim == 0:
            return LowRankRows(self.left.narrow(2, start, length), self.right)
        return LowRankRows(self.left, self.right.narrow(dim + 1, start, length))

    @override
    def dense(self) -> Tensor:
        product = self.left.mT @ self.right.flatten(2)
        return torch.unflatten(product, 2, self.right.shape[2:])
