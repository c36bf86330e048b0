"""Perturbed parameters: what a policy holds in place of its parameters while a population runs through it.

A `PerturbedParameter` looks like the parameter. When it meets a torch operation, torch passes the whole call
to `__torch_function__`, and the rule registered for that operation computes the result with each row's own
weights. The policy needs no change. Without a rule, the operation runs on the parameter written out for every
row if that loses no structure, and raises an error otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.parameter_noise import DenseRows, ParameterNoise, aligned
from es_flipout.perturbations.registry import (
    ELEMENTWISE,
    RULES,
    SHAPING,
    Operation,
    UnsupportedOperationError,
    operation_name,
)


class PerturbedParameter(Tensor):
    """A parameter whose value differs from row to row: plain + noise.

    Attributes:
        plain: the unperturbed value, [*shape].
        noise: the scaled noise of N rows.
        parameter_name: the parameter's name in its module.
        context: how the rows lie in the tensors of the current run.
    """

    plain: Tensor
    noise: ParameterNoise
    parameter_name: str
    context: MemberContext

    @staticmethod
    def of(name: str, value: Tensor) -> PerturbedParameter:
        """Returns parameter `name` of value `value`, perturbed; noise and context are to be set."""
        parameter = value.detach().as_subclass(PerturbedParameter)
        parameter.plain = value
        parameter.parameter_name = name
        return parameter

    def derived(self, plain: Tensor, noise: ParameterNoise) -> PerturbedParameter:
        """Returns a view of this parameter, perturbed by the same view of its noise."""
        view = PerturbedParameter.of(self.parameter_name, plain)
        view.noise, view.context = noise, self.context
        return view

    def written_out(self) -> Tensor:
        """Returns each row's own value, as an ordinary tensor that the policy can compute with."""
        return self.context.logical(self.rows())

    def rows(self) -> Tensor:
        """Returns each row's own value, [N, *shape]."""
        return self.plain + self.noise.dense()

    @classmethod
    @override
    def __torch_function__(
        cls,
        func: Operation,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the rule of `func`; attributes such as shape and dtype are answered directly."""
        kwargs = kwargs or {}
        if func in RULES:
            return RULES[func](*args, **kwargs)
        if func in _ATTRIBUTES:
            plain = [arg.plain if isinstance(arg, PerturbedParameter) else arg for arg in args]
            return func(*plain, **kwargs)
        return run_written_out(func, *args, **kwargs)


def run_written_out(operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """Runs an operation on parameters written out for every row: always correct, costly for a large weight.

    Raises:
        UnsupportedOperationError: if that would lose a weight's structure, and the operation is not known to
            need the weight written out anyway.
    """
    found = list(perturbed([*args, *kwargs.values()]))
    name = operation_name(operation)
    if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        raise UnsupportedOperationError(
            f"{name!r} would change {described(found)} in place, which members share: "
            "use an operation that returns a new tensor"
        )
    if found[0].context.level is None:
        if operation not in ELEMENTWISE or any(each.plain.ndim > 1 for each in found):
            raise unsupported(operation, found, row_wise=True)
        return _run_row_wise(operation, found, args, kwargs)
    dense = all(isinstance(parameter.noise, DenseRows) for parameter in found)
    if not (dense or operation in ELEMENTWISE or operation in SHAPING):
        raise unsupported(operation, found)
    return _run_with(PerturbedParameter.written_out, operation, args, kwargs)


def _run_row_wise(
    operation: Operation, found: Sequence[PerturbedParameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Runs an elementwise operation on vectors and scalars in a row-wise policy.

    A tensor of more dimensions than the parameters has the row as its first; others are constants. The result
    of parameters and constants alone, as in `log_std.exp()`, is a perturbed parameter again.
    """
    width = max(parameter.plain.ndim for parameter in found)
    tensors = [each for each in (*args, *kwargs.values()) if type(each) is Tensor and each.ndim > width]
    for tensor in tensors:
        found[0].context.physical(tensor)  # raises if the rows are not there
    ndim = max((tensor.ndim for tensor in tensors), default=width + 1)
    rows = _run_with(lambda parameter: aligned(parameter.rows(), ndim), operation, args, kwargs)
    if tensors:
        return rows
    plain = _run_with(lambda parameter: parameter.plain, operation, args, kwargs)
    return found[0].derived(plain, DenseRows(rows - plain))


def _run_with(
    value_of: Callable[[PerturbedParameter], Tensor],
    operation: Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Runs an operation with `value_of` of each perturbed parameter in its place."""

    def resolve(argument: Any) -> Any:
        if isinstance(argument, PerturbedParameter):
            return value_of(argument)
        if isinstance(argument, list | tuple):
            return type(argument)(map(resolve, argument))
        return argument

    result: Tensor = operation(*map(resolve, args), **{key: resolve(value) for key, value in kwargs.items()})
    return result


def unsupported(
    operation: Operation, parameters: Iterable[PerturbedParameter], row_wise: bool = False
) -> UnsupportedOperationError:
    """Returns the error that names an operation without a rule, its parameters and the remedies."""
    parameters = list(parameters)
    if row_wise:
        advice = "or let torch.vmap run the members one by one (row_wise = False on the policy)"
    else:
        advice = "or leave the parameter without noise (requires_grad_(False), or exclude)"
        if not all(isinstance(each.noise, DenseRows) for each in parameters):
            needs_none = "perturbation Independent or estimator 'independent', which need no rules"
            advice = f"use {needs_none}, {advice}"
    return UnsupportedOperationError(
        f"no rule for the operation {operation_name(operation)!r} on {described(parameters)}; "
        f"register one with es_flipout.perturbations.rule, {advice}"
    )


def described(parameters: Iterable[PerturbedParameter]) -> str:
    """Returns the names and shapes of parameters, for an error."""
    names = ", ".join(f"{each.parameter_name!r} {list(each.plain.shape)}" for each in parameters)
    return f"the perturbed parameter {names}"


def require_vmap(operation: Operation, *arguments: Any) -> None:
    """Refuses an operation that gives the leading dimensions a meaning, which a row-wise policy forbids.

    Raises:
        UnsupportedOperationError: if the policy runs row-wise.
    """
    found = list(perturbed(arguments))
    if found and found[0].context.level is None:
        raise unsupported(operation, found, row_wise=True)


def perturbed(arguments: Iterable[Any]) -> Iterable[PerturbedParameter]:
    """Yields the perturbed parameters among arguments and lists of them."""
    for argument in arguments:
        if isinstance(argument, PerturbedParameter):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from perturbed(argument)


_ATTRIBUTES: frozenset[Operation] = frozenset(
    [
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "grad", "layout")
        ),
        *(
            getattr(Tensor, name).__get__
            for name in ("is_cuda", "is_cpu", "is_sparse", "is_nested", "is_quantized", "is_meta", "itemsize")
        ),
        *(
            getattr(Tensor, name)
            for name in ("size", "dim", "numel", "is_floating_point", "__len__", "element_size", "stride")
        ),
        *(getattr(Tensor, name) for name in ("data_ptr", "get_device")),
        *(getattr(Tensor, name) for name in ("new_zeros", "new_ones", "new_empty", "new_full", "is_complex")),
        *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like),
        *(torch.randn_like, torch.is_floating_point, torch.is_complex, torch.numel),
    ]
)
"""Operations that do not read the value of a parameter."""
_IN_PLACE = frozenset(
    ["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"]
)
