"""Flipout: all members share K base matrices and differ by a pair of sign vectors a weight.

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

A weight of more dimensions, such as a convolution's kernel, has signs along its first two (channels), and
a base of its own shape. Parameters with fewer (biases, gains, log standard deviations) are small and get
dense Gaussian noise a member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.base import NoiseRows, Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.independent import IndependentNoise, sample_dense
from es_flipout.perturbations.packing import Packed, accumulation_dtype, by_dtype
from es_flipout.perturbations.parameter_noise import (
    Convolution,
    ParameterNoise,
    aligned,
    channel_aligned,
    lookup,
)
from es_flipout.perturbations.rowwise import rowwise_linear


class BaseGroups:
    """Which rows use which base, so that every base meets its rows in one operation.

    One object serves all parameters of a selection.
    """

    def __init__(self, base_of_row: Tensor, num_bases: int, *, grouped: bool = False) -> None:
        """Takes the base index of each row, int64 [N].

        Args:
            base_of_row: the indices.
            num_bases: K.
            grouped: whether they are known to be in order, each N / K times: then nobody has to look.
        """
        self.base_of_row = base_of_row
        self._num_bases = num_bases
        self._counts = [len(base_of_row) // num_bases] * num_bases
        self._order: Tensor | None = None
        if not grouped:
            self._sort()

    def assign(self, rows: Tensor, bases: Tensor) -> None:
        """Gives `rows` (int64 [M]) other bases (int64 [M])."""
        self.base_of_row[rows] = bases
        self._sort()

    def _sort(self) -> None:
        self._order = torch.argsort(self.base_of_row, stable=True)
        self._inverse = torch.argsort(self._order)
        self._counts = torch.bincount(self.base_of_row, minlength=self._num_bases).tolist()

    def run(self, operation: Callable[..., Tensor], bases: Tensor, *inputs: Tensor) -> Tensor:
        """Returns operation(inputs, base) of all rows, each with its own base, [N, ...]."""
        order = self._order
        sorted_inputs = inputs if order is None else [x[order] for x in inputs]
        parts = zip(*(x.split_with_sizes(self._counts) for x in sorted_inputs), strict=True)
        results = torch.cat([operation(*part, base) for part, base in zip(parts, bases, strict=True)])
        return results if order is None else results[self._inverse]


@dataclass(frozen=True)
class FlipoutRows(ParameterNoise):
    """Flipout noise of one weight for N rows.

    Attributes:
        bases: base tensors [K, J, I, ...].
        signs_0: signs along the first dimension, [N, J], times scale and orientation.
        signs_1: signs along the second dimension, [N, I].
        groups: which rows use which base; None for a single base.
    """

    bases: Tensor
    signs_0: Tensor
    signs_1: Tensor
    groups: BaseGroups | None

    def _run(self, operation: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Returns operation(inputs, base) of all rows; an operation keeps rows first."""
        if self.groups is None:
            return operation(*inputs, self.bases[0])
        return self.groups.run(operation, self.bases, *inputs)

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `ParameterNoise.add_linear`."""
        flipped = inputs * aligned(self.signs_1, inputs.ndim)
        return outputs.addcmul_(self._run(rowwise_linear, flipped), aligned(self.signs_0, inputs.ndim))

    def add_bilinear(self, outputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """See `ParameterNoise.add_bilinear`."""
        flipped = first * aligned(self.signs_1, first.ndim)
        return outputs.addcmul_(self._run(F.bilinear, flipped, second), aligned(self.signs_0, outputs.ndim))

    def add_convolution(self, outputs: Tensor, inputs: Tensor, convolution: Convolution) -> Tensor:
        """See `ParameterNoise.add_convolution`."""

        def convolve(inputs: Tensor, base: Tensor) -> Tensor:
            return torch.unflatten(convolution(inputs.flatten(0, 1), base), 0, inputs.shape[:2])

        # A channel of the weight's second dimension stands for one channel of every group.
        signs_0 = channel_aligned(self.signs_0, 1, inputs.ndim)
        signs_1 = channel_aligned(self.signs_1, convolution.groups, inputs.ndim)
        ins, outs = (signs_0, signs_1) if convolution.transposed else (signs_1, signs_0)
        return outputs.addcmul_(self._run(convolve, inputs * ins), outs)

    def add_embedding(self, outputs: Tensor, indices: Tensor) -> Tensor:
        """See `ParameterNoise.add_embedding`."""
        entries = self._run(F.embedding, indices) * lookup(self.signs_0, indices).unsqueeze(-1)
        return outputs.addcmul_(entries, aligned(self.signs_1, outputs.ndim))

    def transposed(self) -> FlipoutRows:
        """See `ParameterNoise.transposed`."""
        return FlipoutRows(self.bases.mT, self.signs_1, self.signs_0, self.groups)

    def narrowed(self, dim: int, start: int, length: int) -> FlipoutRows:
        """See `ParameterNoise.narrowed`."""
        signs_0 = self.signs_0.narrow(1, start, length) if dim == 0 else self.signs_0
        signs_1 = self.signs_1.narrow(1, start, length) if dim == 1 else self.signs_1
        return FlipoutRows(self.bases.narrow(dim + 1, start, length), signs_0, signs_1, self.groups)

    def dense(self) -> Tensor:
        """See `ParameterNoise.dense`."""
        signs = self.signs_0.unsqueeze(2) * self.signs_1.unsqueeze(1)
        bases = self.bases[0] if self.groups is None else self.bases[self.groups.base_of_row]
        return bases * signs.view(*signs.shape, *(1,) * (self.bases.ndim - 3))


class FlipoutNoiseRows(NoiseRows):
    """Flipout noise of N rows, and which base each of them uses."""

    def __init__(self, noise: FlipoutNoise, members: Tensor, scale: float, *, grouped: bool = False) -> None:
        self._flipout = noise
        self._groups: BaseGroups | None = None
        if noise.num_bases > 1:
            self._groups = BaseGroups(noise.base_of(members), noise.num_bases, grouped=grouped)
        super().__init__(noise, members, scale)

    def _of_parameters(self, values: Sequence[Tensor]) -> dict[str, ParameterNoise]:
        return self._flipout.of_parameters(self._by_name(values), self._groups)

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """See `NoiseRows.assign`."""
        super().assign(rows, members)
        if self._groups is not None:
            self._groups.assign(rows, self._flipout.base_of(members))


class FlipoutNoise(PopulationNoise):
    """The bases and signs of a generation; direction d uses base d // (D / K).

    Attributes:
        bases: base tensors of each weight, [K, J, I, ...], by parameter name.
        num_bases: K.
        vectors: the noise of all other parameters.
    """

    def __init__(
        self, bases: Mapping[str, Tensor], signs: Sequence[Packed], vectors: IndependentNoise
    ) -> None:
        """Takes what was drawn.

        Args:
            bases: as above.
            signs: int8 signs, packed for the weights of each dtype: of weight W, "0 W" [J] and "1 W" [I].
            vectors: as above.
        """
        super().__init__([*signs, *vectors.packs], vectors.population_size, vectors.antithetic)
        self.bases = bases
        self.num_bases = next((len(each) for each in bases.values()), 1)
        self.vectors = vectors
        self._signs = signs
        count = self.population_size // 2 if self.antithetic else self.population_size
        self._directions_per_base = count // self.num_bases

    def base_of(self, members: Tensor) -> Tensor:
        """Returns the base index of members [N]."""
        return self.directions(members)[0] // self._directions_per_base

    def rows(self, members: Tensor, scale: float, *, grouped: bool = False) -> FlipoutNoiseRows:
        """See `PopulationNoise.rows`."""
        return FlipoutNoiseRows(self, members, scale, grouped=grouped)

    def of_parameters(
        self, values: Sequence[Mapping[str, Tensor]], groups: BaseGroups | None = None
    ) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.of_parameters`."""
        signs = {name: value for pack in values[: len(self._signs)] for name, value in pack.items()}
        matrices = {
            name: FlipoutRows(bases, signs[f"0 {name}"], signs[f"1 {name}"], groups)
            for name, bases in self.bases.items()
        }
        return {**matrices, **self.vectors.of_parameters(values[len(self._signs) :])}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        sums = self.vectors.weighted_sum(weights)
        weights = self.direction_weights(weights)
        signs = {name: value for pack in self._signs for name, value in pack.by_name(pack.values).items()}
        for name, bases in self.bases.items():
            dtype, shape = accumulation_dtype(bases.dtype), (self.num_bases, self._directions_per_base, -1)
            signs_0 = (signs[f"0 {name}"] * weights.to(dtype).unsqueeze(1)).view(shape)
            signs_1 = signs[f"1 {name}"].to(dtype).view(shape)
            total = torch.zeros(bases.shape[1:], dtype=dtype, device=bases.device)
            for base, r, s in zip(bases, signs_0, signs_1, strict=True):
                product = r.mT @ s
                total.addcmul_(base, product.view(*product.shape, *(1,) * (base.ndim - 2)))
            sums[name] = total.to(bases.dtype)
        return sums


def draw_signs(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Returns fair signs ±1, eight to a random byte."""
    device, count = generator.device, math.prod(shape)
    octets = torch.randint(256, (-(-count // 8),), generator=generator, dtype=torch.uint8, device=device)
    every_octet = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)
    signs = (2 * (every_octet & 1) - 1).to(dtype).index_select(0, octets.int())
    return signs.flatten()[:count].view(tuple(shape))


@dataclass(frozen=True)
class Flipout(Perturbation):
    """Flipout noise for weights of two dimensions or more, dense Gaussian noise for everything else.

    Attributes:
        num_bases: base tensors K a weight, each shared by P / K members.
        base: distribution of their entries: "rademacher" (±1: the same mean and variance a weight as
            Gaussian noise, and for a fitness linear in the weights no excess variance from sharing a base),
            or "gaussian" (the paper's).
    """

    num_bases: int = 1
    base: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        if self.num_bases < 1:
            raise ValueError(f"num_bases must be >= 1, got {self.num_bases}")
        if self.base not in ("rademacher", "gaussian"):
            raise ValueError(f"base must be 'rademacher' or 'gaussian', got {self.base!r}")

    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> FlipoutNoise:
        """See `Perturbation.sample`."""
        count = num_directions(population_size, antithetic)
        if count % self.num_bases:
            raise ValueError(
                f"{population_size} members cannot share {self.num_bases} bases evenly: the population must "
                f"be divisible by {self.num_bases * (population_size // count)}"
            )

        def draw_bases(weight: Tensor) -> Tensor:
            shape = (self.num_bases, *weight.shape)
            if self.base == "rademacher":
                return draw_signs(shape, weight.dtype, generator)
            return torch.randn(shape, generator=generator, dtype=weight.dtype, device=generator.device)

        bases: dict[str, Tensor] = {}
        packs = []
        weights = {name: value for name, value in parameters.items() if value.ndim >= 2}
        for dtype, group in by_dtype(weights).items():
            signs_0: dict[str, Tensor] = {}
            signs_1: dict[str, Tensor] = {}
            for name, weight in group.items():
                bases[name] = draw_bases(weight)
                signs_0[f"0 {name}"] = draw_signs((count, weight.shape[0]), torch.int8, generator)
                signs_1[f"1 {name}"] = draw_signs((count, weight.shape[1]), torch.int8, generator)
            packs.append(Packed.of(signs_0, signs_1, dtype))
        vectors = {name: value for name, value in parameters.items() if value.ndim < 2}
        return FlipoutNoise(bases, packs, sample_dense(vectors, population_size, generator, antithetic))
