"""Parameters used elementwise, views of parameters, and normalization layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.perturbed_parameter import PerturbedParameter, require_vmap, run_written_out
from es_flipout.perturbations.registry import ELEMENTWISE, SHAPING, UnsupportedOperationError, rule
from es_flipout.perturbations.rules.linear import embedding, transpose

_ELEMENTWISE = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "rsub"),
    *("pow", "neg", "negative", "exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square"),
    *("reciprocal", "abs", "sign", "sin", "cos", "tan", "sinh", "cosh", "tanh", "atan", "atan2", "erf"),
    *("sigmoid", "logit", "softplus", "relu", "elu", "silu", "gelu", "leaky_relu", "hardtanh"),
    *("clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv"),
    *("fmod", "remainder", "floor", "ceil", "round", "hypot", "eq", "ne", "lt", "le", "gt", "ge"),
    *("float", "double", "bfloat16", "half", "type_as", "to"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__"),
    *("__neg__", "__pow__", "__rpow__", "__abs__", "__lt__", "__le__", "__gt__", "__ge__"),
)
_SHAPING = (
    *("view", "reshape", "expand", "expand_as", "view_as", "unsqueeze", "squeeze", "flatten", "unflatten"),
    *("permute", "movedim", "transpose", "swapaxes", "t", "repeat", "repeat_interleave", "tile"),
    *("broadcast_to", "unbind", "select", "index_select", "gather", "__getitem__", "flip", "roll"),
    *("stack", "cat", "concat", "hstack", "vstack", "scaled_dot_product_attention"),
)
for _names, _operations in ((_ELEMENTWISE, ELEMENTWISE), (_SHAPING, SHAPING)):
    _operations.update(
        getattr(owner, name) for owner in (torch, Tensor, F) for name in _names if hasattr(owner, name)
    )


@rule(Tensor.contiguous, Tensor.clone, torch.clone)
def same(input: PerturbedParameter, **_: Any) -> Tensor:
    """Runs an operation that leaves a value as it is."""
    return input


@rule(Tensor.__repr__)
def shown(input: PerturbedParameter, **_: Any) -> str:
    """Runs `repr(parameter)`: its name and shape, in a debugger or an error of somebody's own."""
    return f"PerturbedParameter({input.parameter_name!r}, shape={list(input.plain.shape)})"


@rule(Tensor.__deepcopy__)
def deepcopied(input: PerturbedParameter, memo: Any) -> Tensor:
    """Runs `copy.deepcopy(parameter)`, in a forward that copies a part of its module."""
    return input


@rule(Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
def detached(input: PerturbedParameter) -> Tensor:
    """Runs `parameter.detach()` and `parameter.data`: the same value, through which no gradient flows."""
    return input.derived(input.plain.detach(), input.noise.detached())


@rule(Tensor.to, Tensor.type)
def to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Runs a conversion; one that changes nothing keeps the parameter's structure."""
    if not isinstance(input, PerturbedParameter):  # x.to(parameter)
        like: Any = [arg.plain if isinstance(arg, PerturbedParameter) else arg for arg in args]
        return input.to(*like, **kwargs)
    if input.plain.to(*args, **kwargs) is input.plain:
        return input
    return run_written_out(Tensor.to, input, *args, **kwargs)


@rule(Tensor.T.__get__, Tensor.mT.__get__, Tensor.t, torch.t, torch.adjoint)  # type: ignore[attr-defined]
def transposed(input: PerturbedParameter) -> Tensor:
    """Runs the transposition of a matrix."""
    return transpose(input) if input.ndim == 2 else run_written_out(torch.t, input)


@rule(torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes)
def transpose_dims(input: PerturbedParameter, dim0: int, dim1: int) -> Tensor:
    """Runs `parameter.transpose(dim0, dim1)`."""
    dims = {dim0 % input.ndim, dim1 % input.ndim}
    if input.ndim == 2 and dims == {0, 1}:
        return transpose(input)
    return run_written_out(torch.transpose, input, dim0, dim1)


def narrow_parameter(parameter: PerturbedParameter, dim: int, start: int, length: int) -> PerturbedParameter:
    """Returns a slice of a parameter."""
    plain = parameter.plain.narrow(dim, start, length)
    return parameter.derived(plain, parameter.noise.narrowed(dim % parameter.ndim, start, length))


@rule(torch.narrow, Tensor.narrow)
def narrow(input: PerturbedParameter, dim: int, start: int, length: int) -> Tensor:
    """Runs `parameter.narrow(dim, start, length)`."""
    return narrow_parameter(input, dim, start, length)


@rule(torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes)
def split(tensor: PerturbedParameter, split_size_or_sections: Any, dim: int = 0) -> Sequence[Tensor]:
    """Runs a split into pieces of given sizes."""
    pieces = torch.split(tensor.plain, split_size_or_sections, dim)
    return _consecutive(tensor, dim, [piece.shape[dim] for piece in pieces])


@rule(torch.chunk, Tensor.chunk)
def chunk(input: PerturbedParameter, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    """Runs a split into a number of pieces."""
    return _consecutive(input, dim, [piece.shape[dim] for piece in input.plain.chunk(chunks, dim)])


def _consecutive(parameter: PerturbedParameter, dim: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(
        narrow_parameter(parameter, dim, start, size) for start, size in zip(starts, sizes, strict=True)
    )


@rule(Tensor.__getitem__)
def getitem(input: Tensor, index: Any) -> Tensor:
    """Runs `parameter[index]`: slices keep the structure, a tensor of indices is an embedding lookup."""
    if not isinstance(input, PerturbedParameter):
        return run_written_out(Tensor.__getitem__, input, index)
    if isinstance(index, Tensor) and index.dtype == torch.int64 and input.ndim == 2:
        return embedding(torch.where(index < 0, index + len(input), index), input)
    indices = index if isinstance(index, tuple) else (index,)
    if all(isinstance(each, slice) and each.step in (None, 1) for each in indices):
        for dim, each in enumerate(indices):
            start, stop, _ = each.indices(input.shape[dim])
            input = narrow_parameter(input, dim, start, max(stop - start, 0))
        return input
    return run_written_out(Tensor.__getitem__, input, index)


def affine(
    operation: Any, outputs: Tensor, weight: Tensor | None, bias: Tensor | None, *, by_channel: bool
) -> Tensor:
    """Returns outputs * weight + bias, along the last dimension or the channels (dimension 1)."""
    if by_channel:
        require_vmap(operation, weight, bias)

    def place(parameter: Tensor) -> Tensor:
        return parameter.view(-1, *(1,) * (outputs.ndim - 2)) if by_channel else parameter

    if weight is not None:
        outputs = outputs * place(weight)
    return outputs if bias is None else outputs + place(bias)


@rule(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Runs layer normalization with a perturbed gain or offset."""
    outputs = F.layer_norm(input, normalized_shape, eps=eps)
    return affine(F.layer_norm, outputs, weight, bias, by_channel=False)


@rule(F.rms_norm)
def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Runs RMS normalization with a perturbed gain."""
    outputs = F.rms_norm(input, normalized_shape, eps=eps)
    return affine(F.rms_norm, outputs, weight, None, by_channel=False)


@rule(F.group_norm)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Runs group normalization with a perturbed gain or offset."""
    outputs = F.group_norm(input, num_groups, eps=eps)
    return affine(F.group_norm, outputs, weight, bias, by_channel=True)


@rule(F.instance_norm)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Runs instance normalization with a perturbed gain or offset."""
    outputs = F.instance_norm(
        input, running_mean, running_var, use_input_stats=use_input_stats, momentum=momentum, eps=eps
    )
    return affine(F.instance_norm, outputs, weight, bias, by_channel=True)


@rule(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Runs batch normalization in evaluation mode with a perturbed gain or offset."""
    if training and running_mean is not None:
        raise UnsupportedOperationError(
            "batch_norm in training mode updates running statistics that members share: call policy.eval()"
        )
    outputs = F.batch_norm(input, running_mean, running_var, training=training, eps=eps)
    return affine(F.batch_norm, outputs, weight, bias, by_channel=True)


@rule(torch.prelu)
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Runs x where it is positive, weight * x elsewhere, with one weight per channel (dimension 1)."""
    slope = weight
    if weight.numel() > 1:
        require_vmap(torch.prelu, weight)
        slope = weight.view(-1, *(1,) * (input.ndim - 2))
    return torch.where(input > 0, input, slope * input)
