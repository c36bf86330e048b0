"""Linear and bilinear maps: F.linear, matrix products with a parameter, F.bilinear, embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.padded_linear import padded_linear
from es_flipout.perturbations.parameter_noise import aligned
from es_flipout.perturbations.perturbed_parameter import (
    PerturbedParameter,
    described,
    perturbed,
    require_vmap,
    run_written_out,
)
from es_flipout.perturbations.registry import UnsupportedOperationError, rule
from es_flipout.perturbations.torch_modes import tracked


def context_of(*arguments: Any) -> MemberContext:
    """Returns the context of the first perturbed parameter among arguments."""
    return next(iter(perturbed(arguments))).context


def linear_rows(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns inputs Wᵀ + b for rows, [N, ..., I] to [N, ..., J], with W, b, both or neither perturbed."""
    plain_bias = bias.plain if isinstance(bias, PerturbedParameter) else bias
    if isinstance(weight, PerturbedParameter):
        outputs = padded_linear(inputs, weight.plain, plain_bias)
        outputs = weight.noise.add_linear(outputs, inputs)
    else:
        outputs = padded_linear(inputs, weight, plain_bias)
    if isinstance(bias, PerturbedParameter):
        outputs = outputs.add_(aligned(bias.noise.dense(), outputs.ndim))
    return outputs


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Runs y = x Wᵀ + b with any of the three perturbed."""
    if isinstance(input, PerturbedParameter):
        require_vmap(F.linear, input)
        input = input.written_out()
        if not isinstance(weight, PerturbedParameter) and not isinstance(bias, PerturbedParameter):
            return F.linear(input, weight, bias)
    if not isinstance(weight, PerturbedParameter):  # but the input may differ between rows
        assert bias is not None
        return F.linear(input, weight).add(bias)
    if weight.plain.ndim != 2:
        return run_written_out(F.linear, input, weight, bias)
    context = weight.context
    if bias is not None and not isinstance(bias, PerturbedParameter):
        outputs = context.logical(linear_rows(context.physical(input), weight, None))
        return outputs.add(bias.to(outputs.dtype))  # which autocast may have chosen
    return context.logical(linear_rows(context.physical(input), weight, bias))


@rule(torch.matmul, torch.mm, torch.mv, Tensor.matmul, Tensor.mm, Tensor.mv, Tensor.__matmul__)
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Runs a matrix product of which either side is a perturbed matrix."""
    if isinstance(other, PerturbedParameter) and other.ndim == 2:
        return linear(input, transpose(other))
    if isinstance(input, PerturbedParameter) and input.ndim == 2:
        if other.ndim == 1:
            return linear(other, input)
        return linear(other.mT, input).transpose(-1, -2)
    return run_written_out(torch.matmul, input, other)


@rule(Tensor.__rmatmul__)
def rmatmul(other: Tensor, input: Tensor) -> Tensor:
    """Runs `input @ other`, as Python calls it for a perturbed `other`."""
    return matmul(input, other)


@rule(torch.addmm, Tensor.addmm)
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Runs beta * input + alpha * mat1 @ mat2."""
    return beta * input + alpha * (mat1 @ mat2)


@rule(F.bilinear)
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Runs y_j = x1ᵀ W_j x2 + b_j with W, b or both perturbed."""
    if not isinstance(weight, PerturbedParameter):
        return F.bilinear(input1, input2, weight).add(bias)  # type: ignore[arg-type]
    context = weight.context
    first, second = context.physical(input1), context.physical(input2)
    outputs = weight.noise.add_bilinear(F.bilinear(first, second, weight.plain), first, second)
    result = context.logical(outputs)
    return result if bias is None else result + bias


@rule(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Looks up entries of a perturbed table, whose entry `padding_idx` gets no gradient."""
    assert isinstance(weight, PerturbedParameter)
    if tracked(weight.plain) and (scale_grad_by_freq or sparse):
        option = "sparse" if sparse else "scale_grad_by_freq"
        raise UnsupportedOperationError(
            f"'embedding' with {option}=True has no rule for the gradient of {described([weight])}: "
            f"set {option}=False, or leave the parameter without noise"
        )
    if max_norm is not None:
        raise UnsupportedOperationError(
            f"'embedding' with max_norm would rescale {described([weight])} in place, which members share: "
            "set max_norm=None, and rescale what it returns"
        )
    context = weight.context
    indices = context.physical(input)
    entries = weight.noise.add_embedding(F.embedding(indices, weight.plain), indices)
    if padding_idx is not None and tracked(entries):
        is_padding = (indices == padding_idx % len(weight)).unsqueeze(-1)
        entries = torch.where(is_padding, entries.detach(), entries)
    return context.logical(entries)


def transpose(parameter: PerturbedParameter) -> PerturbedParameter:
    """Returns the transposed matrix."""
    return parameter.derived(parameter.plain.mT, parameter.noise.transposed())
