"""Flipout: all members share K base matrices and differ by a pair of sign vectors a weight matrix.

Wen, Vicol, Ba, Tran and Grosse, "Flipout: Efficient Pseudo-Independent Weight Perturbations on
Mini-Batches", ICLR 2018. For a weight W[J, I] in PyTorch's orientation, member m has

    eps_m = base_k ∘ (r_m s_mᵀ)             r_m in {±1}^J (outputs), s_m in {±1}^I (inputs)

so for the input row x of whichever slot the member occupies

    x eps_mᵀ = ((x ∘ s_m) base_kᵀ) ∘ r_m

and a whole batch, each row with its own noise, costs one matrix product a base. Weighted by w_m the
noise sums to

    Σ_m w_m eps_m = Σ_k base_k ∘ (R_kᵀ diag(w_k) S_k)

again one matrix product a base, never an array of members x weights. The paper's equations 3 and 5 swap
the roles of r and s with respect to its equation 4; the form above is the consistent one.

Parameters that are not matrices (biases, gains, log standard deviations) are small and get dense
Gaussian noise a member.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from es_flipout.perturbations.base import ParameterNoise, Perturbation, PopulationNoise
from es_flipout.perturbations.independent import IndependentNoise
from es_flipout.perturbations.rowwise import rowwise_linear


class BaseGroups:
    """Which rows use which base, so that every base meets its rows in one product.

    One object serves all parameters of a selection.

    Attributes:
        base_of_row: base index of each row, int64 [N].
        order: rows sorted by base, int64 [N].
        inverse: where each row went, int64 [N].
        counts: rows of each base, K integers.
    """

    def __init__(self, base_of_row: Tensor, num_bases: int) -> None:
        self.base_of_row = base_of_row
        self.order = torch.argsort(base_of_row, stable=True)
        self.inverse = torch.argsort(self.order)
        self.counts: list[int] = torch.bincount(base_of_row, minlength=num_bases).tolist()

    def replaced(self, rows: Tensor, other: BaseGroups) -> BaseGroups:
        """Returns the groups after `rows` (int64 [M]) took over the bases of the M rows of `other`."""
        base_of_row = self.base_of_row.clone()
        base_of_row[rows] = other.base_of_row
        return BaseGroups(base_of_row, len(self.counts))


@dataclass
class FlipoutRows(ParameterNoise):
    """Flipout noise of one weight matrix for N rows.

    Attributes:
        bases: base matrices [K, J, I].
        output_signs: r of each row, times scale and orientation, [N, J].
        input_signs: s of each row, [N, I].
        groups: which rows use which base; None for a single base.
    """

    bases: Tensor
    output_signs: Tensor
    input_signs: Tensor
    groups: BaseGroups | None

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `ParameterNoise.add_linear`."""
        flipped = inputs * self._aligned(self.input_signs, inputs.ndim)
        return outputs.addcmul_(self._times_base(flipped), self._aligned(self.output_signs, inputs.ndim))

    @staticmethod
    def _aligned(signs: Tensor, ndim: int) -> Tensor:
        """Returns the signs as [N, 1, ..., width], so that they broadcast over the dimensions between."""
        if ndim == 2:
            return signs
        rows, width = signs.shape
        return signs.view(rows, *(1,) * (ndim - 2), width)

    def _times_base(self, inputs: Tensor) -> Tensor:
        if self.groups is None:
            return rowwise_linear(inputs, self.bases[0])
        parts = inputs[self.groups.order].split_with_sizes(self.groups.counts)
        products = [rowwise_linear(part, base) for part, base in zip(parts, self.bases, strict=True)]
        return torch.cat(products)[self.groups.inverse]

    def dense(self) -> Tensor:
        """See `ParameterNoise.dense`."""
        signs = self.output_signs.unsqueeze(2) * self.input_signs.unsqueeze(1)
        if self.groups is None:
            return self.bases[0] * signs
        return self.bases[self.groups.base_of_row] * signs

    def assign(self, rows: Tensor, noise: FlipoutRows) -> None:
        """See `ParameterNoise.assign`."""
        self.output_signs[rows] = noise.output_signs
        self.input_signs[rows] = noise.input_signs
        if self.groups is not None and noise.groups is not None:
            self.groups = self.groups.replaced(rows, noise.groups)


@dataclass(frozen=True)
class MatrixNoise:
    """Flipout noise of one weight matrix for D directions; signs are int8, a byte each.

    Attributes:
        bases: base matrices [K, J, I].
        output_signs: r of each direction, int8 [D, J].
        input_signs: s of each direction, int8 [D, I].
    """

    bases: Tensor
    output_signs: Tensor
    input_signs: Tensor


class FlipoutNoise(PopulationNoise):
    """The bases and signs of a generation; direction d uses base d // (D / K)."""

    def __init__(
        self, matrices: Mapping[str, MatrixNoise], vectors: IndependentNoise, num_bases: int
    ) -> None:
        super().__init__(vectors.population_size, vectors.mirrored)
        self.matrices = matrices
        self.vectors = vectors
        self.num_bases = num_bases
        directions = self.population_size // 2 if self.mirrored else self.population_size
        self.directions_per_base = directions // num_bases

    def rows(self, members: Tensor, scale: float) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.rows`."""
        direction, orientation = self.directions(members)
        groups = (
            BaseGroups(direction // self.directions_per_base, self.num_bases) if self.num_bases > 1 else None
        )
        rows = self.vectors.rows(members, scale)
        for name, matrix in self.matrices.items():
            dtype = matrix.bases.dtype
            factor = (orientation.to(dtype) * scale).unsqueeze(1)
            rows[name] = FlipoutRows(
                matrix.bases,
                matrix.output_signs[direction].to(dtype) * factor,
                matrix.input_signs[direction].to(dtype),
                groups,
            )
        return rows

    def member(self, index: int) -> dict[str, Tensor]:
        """See `PopulationNoise.member`."""
        direction, orientation = self.directions(torch.tensor(index))
        noise = self.vectors.member(index)
        for name, matrix in self.matrices.items():
            base = matrix.bases[int(direction) // self.directions_per_base]
            signs = torch.outer(matrix.output_signs[direction], matrix.input_signs[direction])
            noise[name] = base * signs * orientation
        return noise

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        total = self.vectors.weighted_sum(weights)
        weights = self.direction_weights(weights)
        for name, matrix in self.matrices.items():
            dtype, shape = matrix.bases.dtype, (self.num_bases, self.directions_per_base, -1)
            outputs = (matrix.output_signs * weights.to(dtype).unsqueeze(1)).view(shape)
            inputs = matrix.input_signs.to(dtype).view(shape)
            total[name] = (matrix.bases * (outputs.transpose(1, 2) @ inputs)).sum(dim=0)
        return total


@dataclass(frozen=True)
class Flipout(Perturbation):
    """Flipout noise for matrices, dense Gaussian noise for everything else.

    Attributes:
        base_distribution: "gaussian" (the paper's) or "rademacher" (entries ±1: the same mean and variance
            a weight, and for a fitness linear in the weights no excess variance from sharing a base).
        num_bases: base matrices K a weight, each shared by P / K members.
        mirrored: whether members come in antithetic pairs, r -> -r.
    """

    base_distribution: Literal["rademacher", "gaussian"] = "rademacher"
    num_bases: int = 1
    mirrored: bool = True

    def sample(
        self, parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator
    ) -> FlipoutNoise:
        """See `Perturbation.sample`."""
        count = self.num_directions(population_size)
        if count % self.num_bases:
            raise ValueError(
                f"{population_size} members cannot share {self.num_bases} bases evenly: the population must "
                f"be divisible by {self.num_bases * (population_size // count)}"
            )

        def signs(*shape: int, device: torch.device) -> Tensor:
            bits = torch.randint(2, shape, generator=generator, dtype=torch.int8, device=device)
            return bits.mul_(2).sub_(1)

        matrices: dict[str, MatrixNoise] = {}
        vectors: dict[str, Tensor] = {}
        for name, value in parameters.items():
            if value.ndim != 2:
                vectors[name] = torch.randn(
                    count, *value.shape, generator=generator, dtype=value.dtype, device=value.device
                )
                continue
            shape = (self.num_bases, *value.shape)
            bases = (
                torch.randn(shape, generator=generator, dtype=value.dtype, device=value.device)
                if self.base_distribution == "gaussian"
                else signs(*shape, device=value.device).to(value.dtype)
            )
            output_size, input_size = value.shape
            matrices[name] = MatrixNoise(
                bases,
                signs(count, output_size, device=value.device),
                signs(count, input_size, device=value.device),
            )
        return FlipoutNoise(
            matrices, IndependentNoise(vectors, population_size, self.mirrored), self.num_bases
        )
