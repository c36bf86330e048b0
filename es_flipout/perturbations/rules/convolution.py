"""Convolutions and transposed convolutions in one to three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from es_flipout.perturbations.parameter_noise import Convolution
from es_flipout.perturbations.perturbed_parameter import PerturbedParameter, require_vmap
from es_flipout.perturbations.registry import Operation, rule
from es_flipout.perturbations.rules.linear import context_of


def convolve(
    convolution: Convolution, dims: int, input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Runs a convolution of inputs [B, channels, ...] or [channels, ...] as one member sees them."""
    require_vmap(convolution.function, weight, bias)
    context = context_of(weight, bias)
    if not isinstance(weight, PerturbedParameter):
        outputs = convolution(input, weight)
    else:
        rows = context.physical(input)
        batched = rows if rows.ndim == dims + 3 else rows.unsqueeze(1)
        plain = torch.unflatten(convolution(batched.flatten(0, 1), weight.plain), 0, batched.shape[:2])
        added = weight.noise.add_convolution(plain, batched, convolution)
        outputs = context.logical(added.view(*rows.shape[: rows.ndim - dims - 1], *added.shape[2:]))
    if bias is None:
        return outputs
    values = bias.written_out() if isinstance(bias, PerturbedParameter) else bias
    values = values.to(outputs.dtype)  # which autocast may have chosen
    return outputs + values.view(*values.shape, *(1,) * dims)


def register(function: Operation, dims: int) -> None:
    """Registers the rule of one of torch's convolutions."""

    @rule(function)
    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        kwargs = {"stride": stride, "padding": padding, "dilation": dilation}
        return convolve(Convolution(function, groups, kwargs, False), dims, input, weight, bias)


def register_transposed(function: Operation, dims: int) -> None:
    """Registers the rule of one of torch's transposed convolutions."""

    @rule(function)
    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        kwargs = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
        }
        return convolve(Convolution(function, groups, kwargs, True), dims, input, weight, bias)


for _dims in (1, 2, 3):
    register(getattr(torch, f"conv{_dims}d"), _dims)
    register_transposed(getattr(torch, f"conv_transpose{_dims}d"), _dims)
