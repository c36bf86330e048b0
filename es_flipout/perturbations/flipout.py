"""Flipout: all members share K base matrices and differ by a pair of sign vectors per weight.

Wen, Vicol, Ba, Tran and Grosse, "Flipout: Efficient Pseudo-Independent Weight Perturbations on
Mini-Batches", ICLR 2018. For a weight W[J, I] in PyTorch's orientation, member m has

    eps_m = base_k ∘ (r_m s_mᵀ)             r_m in {±1}^J (outputs), s_m in {±1}^I (inputs)

so for an input row x of member m

    x eps_mᵀ = ((x ∘ s_m) base_kᵀ) ∘ r_m

and a whole batch, each row with its own noise, costs one matrix product per base. Weighted by w_m the
noise sums to

    Σ_m w_m eps_m = Σ_k base_k ∘ (R_kᵀ diag(w_k) S_k)

again one matrix product per base, never an array of members x weights. The paper's equations 3 and 5 swap
the roles of r and s with respect to its equation 4; the form above is the consistent one.

A weight of more dimensions, such as a convolution's kernel, has signs along its first two (channels), and
a base of its own shape. Parameters with fewer (biases, gains, log standard deviations) are small and get
dense Gaussian noise.

`Flipout` draws the noise of a generation into tables, `FlipoutTable` splits gathered rows into
parameters, and `FlipoutRows` is the product with the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from typing_extensions import override

from es_flipout.choices import BASE, NUM_BASES, BaseDistribution
from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.noise_table import (
    NoiseTable,
    accumulation_dtype,
    draw_dense,
    matrices_and_vectors,
    side_by_side,
)
from es_flipout.perturbations.padded_linear import padded_linear
from es_flipout.perturbations.parameter_noise import (
    Convolution,
    ParameterNoise,
    aligned,
    channel_aligned,
    lookup,
)
from es_flipout.perturbations.row_groups import RowGroups
from es_flipout.perturbations.tiles import Tile, joined, tiles_of


@dataclass(frozen=True)
class Flipout(Perturbation):
    """Flipout noise for weights of two dimensions or more, dense Gaussian noise for everything else.

    Attributes:
        num_bases: base tensors K per weight, each shared by P / K members.
        base: distribution of their entries: "rademacher" (±1: the same mean and variance per weight as
            Gaussian noise, and for a fitness linear in the weights no excess variance from sharing a base),
            or "gaussian" (the paper's).
    """

    num_bases: int = NUM_BASES
    base: BaseDistribution = BASE

    def __post_init__(self) -> None:
        if self.num_bases < 1:
            raise ValueError(f"num_bases must be >= 1, got {self.num_bases}")
        if self.base not in ("rademacher", "gaussian"):
            raise ValueError(f"base must be 'rademacher' or 'gaussian', got {self.base!r}")

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
        if count % self.num_bases:
            raise ValueError(
                f"{population_size} members cannot share {self.num_bases} bases evenly: the population must "
                f"be divisible by {self.num_bases * (population_size // count)}"
            )
        matrices, vectors = matrices_and_vectors(parameters)
        tables: list[NoiseTable] = []
        for group in matrices.values():
            bases: dict[str, Tensor] = {}
            signs_0: dict[str, Tensor] = {}
            signs_1: dict[str, Tensor] = {}
            for name, weight in group.items():
                bases[name] = self._draw_bases(weight, generator)
                signs_0[name] = draw_signs((count, weight.shape[0]), torch.int8, generator)
                signs_1[name] = draw_signs((count, weight.shape[1]), torch.int8, generator)
            tables.append(FlipoutTable(bases, signs_0, signs_1))
        tables += draw_dense(vectors, count, generator)
        return PopulationNoise(tables, population_size, antithetic, self.num_bases if matrices else 1)

    @override
    def check_rescaling(self) -> None:
        # Signs do not change squares: members that share a base differ in no weight's magnitude.
        if self.base != "gaussian" or self.num_bases < 2:
            raise ValueError(
                "a sigma for each weight needs base 'gaussian' and num_bases >= 2 with flipout, because "
                f"members that share a base differ by signs only, got {self.base!r} and {self.num_bases}"
            )

    def _draw_bases(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        shape = (self.num_bases, *weight.shape)
        if self.base == "rademacher":
            return draw_signs(shape, weight.dtype, generator)
        return torch.randn(shape, generator=generator, dtype=weight.dtype, device=generator.device)


class FlipoutTable(NoiseTable):
    """The signs of D directions, and the bases that they flip; direction d uses base d // (D / K).

    Attributes:
        bases: base tensors of each weight, [K, J, I, ...], by parameter name.
    """

    def __init__(
        self, bases: Mapping[str, Tensor], signs_0: Mapping[str, Tensor], signs_1: Mapping[str, Tensor]
    ) -> None:
        """Takes the bases and, by parameter name, int8 signs [D, J] (r) and [D, I] (s)."""
        oriented = {f"0 {name}": signs for name, signs in signs_0.items()}
        values, shapes = side_by_side(oriented | {f"1 {name}": signs for name, signs in signs_1.items()})
        dtype = next(iter(bases.values())).dtype
        super().__init__(values, shapes, dtype, sum(signs.shape[1] for signs in signs_0.values()))
        self.bases = bases

    @override
    def by_parameter(self, values: Tensor, groups: RowGroups | None) -> dict[str, ParameterNoise]:
        signs = self.split(values)
        return {
            name: FlipoutRows(bases, signs[f"0 {name}"], signs[f"1 {name}"], groups)
            for name, bases in self.bases.items()
        }

    @override
    def tiles(self, weights: Tensor, *, squared: bool) -> list[Tile]:
        dtype, signs = accumulation_dtype(self.dtype), self.split(self.values)
        weights = weights.to(dtype).unsqueeze(1)

        @lru_cache(maxsize=1)  # for all tiles of a weight, which follow each other
        def weighted_signs(name: str) -> tuple[Tensor, Tensor]:
            by_base = (len(self.bases[name]), len(weights) // len(self.bases[name]), -1)
            return (signs[f"0 {name}"] * weights).view(by_base), signs[f"1 {name}"].to(dtype).view(by_base)

        def rows_of(name: str, rows: slice) -> Tensor:
            bases, (signs_0, signs_1) = self.bases[name][:, rows], weighted_signs(name)
            total = torch.zeros(bases.shape[1:], dtype=dtype, device=bases.device)
            for base, r, s in zip(bases, signs_0[:, :, rows], signs_1, strict=True):
                product = r.mT @ s
                total.addcmul_(base, product.view(*product.shape, *(1,) * (base.ndim - 2)))
            return total

        def squares_of(name: str, rows: slice) -> Tensor:
            bases = self.bases[name][:, rows].to(dtype)
            of_base = weights.view(len(bases), -1).sum(dim=1)
            total: Tensor = torch.tensordot(of_base, bases.square(), dims=1)
            return total

        formula, result = (squares_of, dtype) if squared else (rows_of, self.dtype)
        return [
            tile
            for name, bases in self.bases.items()
            for tile in tiles_of(bases.shape[1:], result, bases.device, partial(formula, name))
        ]

    @override
    def assembled(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        return {name: joined(values, bases.shape[1:]) for name, bases in self.bases.items()}

    @override
    def pin(self, name: str, entry: int) -> None:
        if name in self.bases:
            self.bases[name][:, entry] = 0

    @override
    def rescale(self, scales: Mapping[str, Tensor]) -> None:
        for name, bases in self.bases.items():
            bases *= scales[name]


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
    groups: RowGroups | None

    def _run(self, operation: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Returns operation(inputs, base) of all rows, each with its own base; rows come first throughout."""
        if self.groups is None:
            return operation(*inputs, self.bases[0])
        return self.groups.run(operation, self.bases, *inputs)

    @override
    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        flipped = inputs * aligned(self.signs_1, inputs.ndim)
        return _add_product(outputs, self._run(padded_linear, flipped), aligned(self.signs_0, inputs.ndim))

    @override
    def add_bilinear(self, outputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        flipped = first * aligned(self.signs_1, first.ndim)
        return _add_product(
            outputs, self._run(F.bilinear, flipped, second), aligned(self.signs_0, outputs.ndim)
        )

    @override
    def add_convolution(self, outputs: Tensor, inputs: Tensor, convolution: Convolution) -> Tensor:
        def convolve(inputs: Tensor, base: Tensor) -> Tensor:
            return torch.unflatten(convolution(inputs.flatten(0, 1), base), 0, inputs.shape[:2])

        # A channel of the weight's second dimension stands for one channel of every group.
        signs_0 = channel_aligned(self.signs_0, 1, inputs.ndim)
        signs_1 = channel_aligned(self.signs_1, convolution.groups, inputs.ndim)
        ins, outs = (signs_0, signs_1) if convolution.transposed else (signs_1, signs_0)
        return _add_product(outputs, self._run(convolve, inputs * ins), outs)

    @override
    def add_embedding(self, outputs: Tensor, indices: Tensor) -> Tensor:
        entries = self._run(F.embedding, indices) * lookup(self.signs_0, indices).unsqueeze(-1)
        return _add_product(outputs, entries, aligned(self.signs_1, outputs.ndim))

    @override
    def transposed(self) -> FlipoutRows:
        return FlipoutRows(self.bases.mT, self.signs_1, self.signs_0, self.groups)

    @override
    def detached(self) -> FlipoutRows:
        return replace(self, bases=self.bases.detach())

    @override
    def narrowed(self, dim: int, start: int, length: int) -> FlipoutRows:
        signs_0 = self.signs_0.narrow(1, start, length) if dim == 0 else self.signs_0
        signs_1 = self.signs_1.narrow(1, start, length) if dim == 1 else self.signs_1
        return FlipoutRows(self.bases.narrow(dim + 1, start, length), signs_0, signs_1, self.groups)

    @override
    def dense(self) -> Tensor:
        signs = self.signs_0.unsqueeze(2) * self.signs_1.unsqueeze(1)
        bases = self.bases[0] if self.groups is None else self.bases[self.groups.base_of_row]
        return bases * signs.view(*signs.shape, *(1,) * (self.bases.ndim - 3))


def _add_product(outputs: Tensor, values: Tensor, signs: Tensor) -> Tensor:
    """Returns outputs + values * signs; in place, but under a torch.func transform of the caller's."""
    if is_functorch_wrapped_tensor(outputs):  # torch.vmap has no rule for addcmul_
        return torch.addcmul(outputs, values, signs)
    return outputs.addcmul_(values, signs)


def draw_signs(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Returns fair signs ±1, eight from each random byte."""
    device, count = generator.device, math.prod(shape)
    octets = torch.randint(256, (-(-count // 8),), generator=generator, dtype=torch.uint8, device=device)
    every_octet = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)
    signs = (2 * (every_octet & 1) - 1).to(dtype).index_select(0, octets.int())
    return signs.flatten()[:count].view(tuple(shape))
