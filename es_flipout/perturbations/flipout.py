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

from es_flipout.perturbations.base import NoiseRows, ParameterNoise, Perturbation, PopulationNoise
from es_flipout.perturbations.independent import IndependentNoise, sample_dense
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


class FlipoutNoiseRows(NoiseRows):
    """Flipout noise of N rows; the signs of all matrices lie side by side in one."""

    def __init__(self, noise: FlipoutNoise, members: Tensor, scale: float) -> None:
        self._noise = noise
        self._scale = scale
        self._vectors = noise.vectors.rows(members, scale)
        self._signs = noise.signs_of(members, scale)
        self._bases = noise.base_of(members)
        super().__init__(self._vectors)
        groups = self._groups()
        for name, (outputs, inputs) in noise.by_name(self._signs).items():
            self[name] = FlipoutRows(noise.matrices[name].bases, outputs, inputs, groups)

    def _groups(self) -> BaseGroups | None:
        return None if self._bases is None else BaseGroups(self._bases, self._noise.num_bases)

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """See `NoiseRows.assign`."""
        self._vectors.assign(rows, members)
        self._signs[rows] = self._noise.signs_of(members, self._scale)
        bases = self._noise.base_of(members)
        if self._bases is None or bases is None:
            return
        self._bases[rows] = bases
        groups = self._groups()
        for matrix in self.values():
            if isinstance(matrix, FlipoutRows):
                matrix.groups = groups


class FlipoutNoise(PopulationNoise):
    """The bases and signs of a generation; direction d uses base d // (D / K)."""

    def __init__(
        self, matrices: Mapping[str, MatrixNoise], vectors: IndependentNoise, num_bases: int
    ) -> None:
        super().__init__(vectors.population_size, vectors.mirrored)
        self.vectors = vectors
        self.num_bases = num_bases
        directions = self.population_size // 2 if self.mirrored else self.population_size
        self.directions_per_base = directions // num_bases
        # One matrix for the signs of all: outputs first, then inputs. `matrices` has views of it.
        self._output_widths = [matrix.output_signs.shape[1] for matrix in matrices.values()]
        self._input_widths = [matrix.input_signs.shape[1] for matrix in matrices.values()]
        self._signs = torch.cat(
            [
                *(matrix.output_signs for matrix in matrices.values()),
                *(matrix.input_signs for matrix in matrices.values()),
                torch.zeros(directions, 0, dtype=torch.int8, device=vectors.values.device),
            ],
            dim=1,
        )
        self._dtype = next((matrix.bases.dtype for matrix in matrices.values()), torch.float32)
        bases = {name: matrix.bases for name, matrix in matrices.items()}
        self.matrices: dict[str, MatrixNoise] = {}
        for (name, base), signs in zip(bases.items(), self._split(self._signs), strict=True):
            self.matrices[name] = MatrixNoise(base, *signs)

    def _split(self, signs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns views of output and input signs of each matrix, given those of all, [..., width]."""
        parts = signs.split_with_sizes([*self._output_widths, *self._input_widths], dim=-1)
        count = len(self._output_widths)
        return list(zip(parts[:count], parts[count:], strict=True))

    def by_name(self, signs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns what `_split` does, by parameter name."""
        return dict(zip(self.matrices, self._split(signs), strict=True))

    def signs_of(self, members: Tensor, scale: float) -> Tensor:
        """Returns the signs of members [N], those of outputs times scale and orientation, [N, width]."""
        direction, orientation = self.directions(members)
        signs = self._signs[direction].to(self._dtype)
        signs[:, : sum(self._output_widths)] *= (orientation.to(self._dtype) * scale).unsqueeze(1)
        return signs

    def base_of(self, members: Tensor) -> Tensor | None:
        """Returns the base index of members [N]; None if there is a single base."""
        if self.num_bases == 1:
            return None
        return self.directions(members)[0] // self.directions_per_base

    def rows(self, members: Tensor, scale: float) -> FlipoutNoiseRows:
        """See `PopulationNoise.rows`."""
        return FlipoutNoiseRows(self, members, scale)

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
                vectors[name] = value
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
        dense = sample_dense(vectors, count, population_size, self.mirrored, generator)
        return FlipoutNoise(matrices, dense, self.num_bases)
