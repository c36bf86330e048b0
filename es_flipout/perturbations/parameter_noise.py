"""The noise of one parameter for N rows, and its product with their inputs.

An operation that is linear in its weight W gives, with a row's noise eps_n added to W,

    op(x, W + eps_n) = op(x, W) + op(x, eps_n)

and the methods here add the second term for all rows at once. `ParameterNoise` computes it from the noise
written out, which works for any family; a family overrides the methods that its structure makes cheaper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.perturbations.torch_modes import tracked

CACHED_VALUES = 2**20
"""About how many numbers stay in a core's cache between two operations on them."""


@dataclass(frozen=True)
class Convolution:
    """A convolution or transposed convolution without its input and weight.

    Attributes:
        function: torch's function, conv1d to conv_transpose3d.
        groups: number of groups.
        kwargs: stride, padding, dilation, output_padding.
        transposed: whether the weight is [inputs, outputs per group, ...].
    """

    function: Any
    groups: int
    kwargs: dict[str, Any]
    transposed: bool

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns [M, outputs, ...] for inputs [M, channels, ...]."""
        outputs: Tensor = self.function(inputs, weight, bias, groups=self.groups, **self.kwargs)
        return outputs

    def of_rows(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Convolves each row's inputs [N, B, channels, ...] with its own weight [N, *weight shape]."""
        rows, batch = inputs.shape[:2]
        folded = inputs.transpose(0, 1).reshape(batch, -1, *inputs.shape[3:])
        apart = replace(self, groups=rows * self.groups)
        outputs = apart(folded, weights.flatten(0, 1))
        return outputs.view(batch, rows, -1, *outputs.shape[2:]).transpose(0, 1)


class ParameterNoise(ABC):
    """The scaled noise of one parameter for N rows, each with its own member's noise."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Returns the noise written out, [N, *parameter shape]."""

    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Adds each row's noise, applied as a linear map, to the outputs of the unperturbed map.

        Args:
            outputs: [N, ..., J]; may be overwritten.
            inputs: [N, ..., I], for a parameter of shape [J, I].

        Returns:
            [N, ..., J], row n being outputs[n] + inputs[n] @ noise_nᵀ.
        """
        noise, shape = self.dense(), outputs.shape
        outputs, inputs = _as_batches(outputs), _as_batches(inputs)
        if outputs.shape[1] > 1 or tracked(inputs, noise):
            return (outputs + inputs @ noise.mT).view(shape)
        # Not a batched matrix product: its rounding depends on the number of rows (see padded_linear.py), and
        # it is slower if the products of a few rows at a time fit into the cache.
        rows = (
            max(CACHED_VALUES // max(noise.shape[1:].numel(), 1), 1)
            if noise.device.type == "cpu"
            else len(noise)
        )
        scratch = noise.new_empty(min(rows, len(noise)), *noise.shape[1:])
        parts = zip(torch.split(noise, rows), torch.split(inputs, rows), strict=True)
        products = [torch.mul(some, x, out=scratch[: len(some)]).sum(dim=-1) for some, x in parts]
        return (outputs + torch.cat(products).unsqueeze(1)).view(shape)

    def add_bilinear(self, outputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Adds first_i noise_jik second_k, for a parameter of shape [J, I, K], to outputs [N, ..., J].

        Args:
            outputs: [N, ..., J]; may be overwritten.
            first: [N, ..., I].
            second: [N, ..., K].
        """
        first, second = _as_batches(first), _as_batches(second)
        products = torch.einsum("nbi,njik,nbk->nbj", first, self.dense(), second)
        return outputs + products.view(outputs.shape)

    def add_convolution(self, outputs: Tensor, inputs: Tensor, convolution: Convolution) -> Tensor:
        """Adds each row's noise, applied as a convolution.

        Args:
            outputs: [N, B, channels out, ...]; may be overwritten.
            inputs: [N, B, channels in, ...].
            convolution: the operation; its weight has the parameter's shape.
        """
        if not len(inputs):  # torch has no convolution of 0 groups
            return outputs
        return outputs + convolution.of_rows(inputs, self.dense())

    def add_embedding(self, outputs: Tensor, indices: Tensor) -> Tensor:
        """Adds each row's noise of the looked-up entries, for a parameter of shape [V, D].

        Args:
            outputs: [N, ..., D]; may be overwritten.
            indices: integers [N, ...].
        """
        return outputs + lookup(self.dense(), indices)

    def transposed(self) -> ParameterNoise:
        """Returns the noise of the transposed matrix."""
        return DenseRows(self.dense().mT)

    def detached(self) -> ParameterNoise:
        """Returns the noise as a constant of autograd."""
        return DenseRows(self.dense().detach())

    def narrowed(self, dim: int, start: int, length: int) -> ParameterNoise:
        """Returns the noise of `parameter.narrow(dim, start, length)`, for a dim >= 0."""
        return DenseRows(self.dense().narrow(dim + 1, start, length))


def _as_batches(rows: Tensor) -> Tensor:
    """Returns [N, ..., I] as [N, B, I]."""
    return rows.reshape(rows.shape[0], rows.shape[1:-1].numel(), rows.shape[-1])


def aligned(rows: Tensor, ndim: int) -> Tensor:
    """Returns rows [N, *shape] as [N, 1, ..., *shape], of `ndim` dimensions, so that they broadcast."""
    if rows.ndim == ndim:
        return rows
    return rows.view(rows.shape[0], *(1,) * (ndim - rows.ndim), *rows.shape[1:])


@dataclass(frozen=True)
class DenseRows(ParameterNoise):
    """Noise of one parameter, written out for every row: `values` is [N, *parameter shape]."""

    values: Tensor

    @override
    def dense(self) -> Tensor:
        return self.values


def lookup(table: Tensor, indices: Tensor) -> Tensor:
    """Returns table[n, indices[n]]: [N, ..., D] for a table [N, V, D] and integers [N, ...]."""
    rows = torch.arange(len(indices), device=indices.device).view(-1, *(1,) * (indices.ndim - 1))
    return table[rows, indices]


def channel_aligned(values: Tensor, groups: int, ndim: int) -> Tensor:
    """Returns values per row and channel, [N, C], as [N, 1, groups * C, 1, ...] of `ndim` dimensions."""
    repeated = values.repeat(1, groups) if groups > 1 else values
    return repeated.view(len(values), 1, repeated.shape[1], *(1,) * (ndim - 3))
