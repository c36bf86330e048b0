"""Stand-ins: what a policy holds in place of its parameters while a population runs through it.

A `PerturbedParameter` looks like the parameter. When a torch operation meets one, torch hands the whole
call over (`__torch_function__`), and the rule registered for that operation computes the result with each
row's own weights. The policy's author sees none of it.

The policy runs for all members at once, in one of two ways. Under `torch.vmap` it sees a single member's
tensors, whatever they are, and the rows are hidden: nothing that it does can mix members. A policy that
declares itself `row_wise` (every leading dimension is a batch, the last one holds features) is spared
vmap's costs and runs on all rows as they are. Rules work on physical tensors, rows first, and
`MemberContext` converts to and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

# There is no public way to look below torch.vmap that is fast: torch.autograd.Function with a vmap method
# has one, at 250 microseconds a call, an order above what a small layer costs.
from torch._C._functorch import _add_batch_dim, _unwrap_batched, maybe_current_level

from es_flipout.perturbations.parameter_noise import DenseNoise, ParameterNoise, aligned

Operation = Callable[..., Any]
Function = TypeVar("Function", bound=Operation)
RULES: dict[Operation, Operation] = {}
"""Every operation with a rule, and how it runs; filled by `rule`."""
ELEMENTWISE: set[Operation] = set()
"""Operations that run on parameters written out for every row, whatever their shape."""
SHAPING: set[Operation] = set()
"""The same, but not in a row-wise policy: there the rows are in the way of a change of shape."""


def rule(*operations: Operation) -> Callable[[Function], Function]:
    """Registers the decorated function as the way to run `operations` with perturbed parameters.

    The function gets the operation's own arguments, any of which may be a `PerturbedParameter`, and
    returns what the operation would.
    """

    def register(function: Function) -> Function:
        for operation in operations:
            RULES[operation] = function
        return function

    return register


class UnsupportedOperationError(NotImplementedError):
    """A perturbed parameter met an operation that has no rule."""


@dataclass(frozen=True)
class MemberContext:
    """How the rows lie in the tensors of one run of the policy.

    Attributes:
        num_rows: N.
        level: the level of torch.vmap that hides the rows; None if the policy runs row-wise.
    """

    num_rows: int
    level: int | None

    @classmethod
    def inside_vmap(cls, num_rows: int) -> MemberContext:
        """Returns the context for what runs inside the current torch.vmap."""
        return cls(num_rows, maybe_current_level())

    def varies(self, tensor: Tensor) -> bool:
        """Returns whether a tensor that is no perturbed parameter differs from row to row under vmap."""
        if self.level is None or isinstance(tensor, PerturbedParameter):
            return False
        return _unwrap_batched(tensor, self.level)[1] is not None

    def physical(self, tensor: Tensor) -> Tensor:
        """Returns a tensor that the policy computes with, rows first: [N, *shape that a member sees]."""
        if self.level is None:
            if tensor.ndim == 0 or tensor.shape[0] != self.num_rows:
                raise ValueError(
                    f"a row_wise policy computed with a tensor of shape {list(tensor.shape)}, but there are "
                    f"{self.num_rows} rows: the first dimension must be the row"
                )
            return tensor
        if maybe_current_level() != self.level:
            raise UnsupportedOperationError(
                "a policy must not use perturbed parameters inside torch.func transforms of its own"
            )
        values, dim = _unwrap_batched(tensor, self.level)
        if dim is None:
            return values.expand(self.num_rows, *values.shape)
        return values.movedim(dim, 0)

    def logical(self, rows: Tensor) -> Tensor:
        """Returns what the policy computes with, given it rows first; undoes `physical`."""
        return rows if self.level is None else _add_batch_dim(rows, 0, self.level)


class PerturbedParameter(Tensor):
    """A parameter whose value differs from row to row: plain + noise.

    Attributes:
        plain: the unperturbed value, [*shape].
        noise: the scaled noise of N rows.
        parameter_name: the parameter's name in its module.
        context: how the rows lie in the tensors that it meets.
    """

    plain: Tensor
    noise: ParameterNoise
    parameter_name: str
    context: MemberContext

    @staticmethod
    def of(name: str, value: Tensor) -> PerturbedParameter:
        """Makes the stand-in for parameter `name` of value `value`; noise and context are set later."""
        stand_in = value.detach().as_subclass(PerturbedParameter)
        stand_in.plain = value.detach()
        stand_in.parameter_name = name
        return stand_in

    def derived(self, plain: Tensor, noise: ParameterNoise) -> PerturbedParameter:
        """Returns the stand-in for a view of this parameter."""
        stand_in = PerturbedParameter.of(self.parameter_name, plain)
        stand_in.noise, stand_in.context = noise, self.context
        return stand_in

    def written_out(self) -> Tensor:
        """Returns each row's own value, as a tensor that a policy under vmap can compute with."""
        return self.context.logical(self.rows())

    def rows(self) -> Tensor:
        """Returns each row's own value, [N, *shape]."""
        return self.plain + self.noise.dense()

    @classmethod
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
    """Runs an operation on parameters written out for every row: right for any, dear for a large weight.

    Raises:
        UnsupportedOperationError: if a weight's structure would be lost, and the operation is not known to
            need it written out anyway.
    """
    found = list(perturbed([*args, *kwargs.values()]))
    name = operation_name(operation)
    if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        raise UnsupportedOperationError(
            f"{name!r} would change {_described(found)} in place, which members share: "
            "use an operation that returns a new tensor"
        )
    if found[0].context.level is None:
        if operation not in ELEMENTWISE or any(each.plain.ndim > 1 for each in found):
            raise unsupported(operation, found, row_wise=True)
        return _run_row_wise(operation, found, args, kwargs)
    dense = all(isinstance(parameter.noise, DenseNoise) for parameter in found)
    if not (dense or operation in ELEMENTWISE or operation in SHAPING):
        raise unsupported(operation, found)
    return _run_with(PerturbedParameter.written_out, operation, args, kwargs)


def _run_row_wise(
    operation: Operation, found: Sequence[PerturbedParameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Runs an elementwise operation on vectors and scalars in a row-wise policy.

    A tensor of more dimensions than the parameters has the row as its first; others are constants. What comes
    of parameters and constants alone, as in `log_std.exp()`, is a perturbed parameter again.
    """
    width = max(parameter.plain.ndim for parameter in found)
    tensors = [each for each in (*args, *kwargs.values()) if type(each) is Tensor and each.ndim > width]
    for tensor in tensors:
        found[0].context.physical(tensor)  # which checks that the rows are there
    ndim = max((tensor.ndim for tensor in tensors), default=width + 1)
    rows = _run_with(lambda parameter: aligned(parameter.rows(), ndim), operation, args, kwargs)
    if tensors:
        return rows
    plain = _run_with(lambda parameter: parameter.plain, operation, args, kwargs)
    return found[0].derived(plain, DenseNoise(rows - plain))


def _run_with(
    value_of: Callable[[PerturbedParameter], Tensor],
    operation: Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Runs an operation on what `value_of` makes of each perturbed parameter."""

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
    """Returns the error that says which operation lacks a rule, for which parameters, and what helps."""
    advice = (
        "or let torch.vmap run the members one by one (row_wise = False on the policy)"
        if row_wise
        else "use perturbation Independent, which needs no rules, or leave the parameter out of the search "
        "(requires_grad_(False))"
    )
    return UnsupportedOperationError(
        f"no rule for the operation {operation_name(operation)!r} on {_described(parameters)}; "
        f"register one with es_flipout.perturbations.rule, {advice}"
    )


def _described(parameters: Iterable[PerturbedParameter]) -> str:
    names = ", ".join(f"{each.parameter_name!r} {list(each.plain.shape)}" for each in parameters)
    return f"the perturbed parameter {names}"


def require_vmap(operation: Operation, *arguments: Any) -> None:
    """Refuses an operation that gives dimensions a meaning of its own, if the policy runs row-wise.

    Raises:
        UnsupportedOperationError: if it does.
    """
    found = list(perturbed(arguments))
    if found[0].context.level is None:
        raise unsupported(operation, found, row_wise=True)


def operation_name(operation: Operation) -> str:
    """Returns an operation's name; that of `weight.T` is T."""
    name: str = getattr(operation, "__name__", repr(operation))
    return operation_name(operation.__self__) if name == "__get__" else name  # type: ignore[attr-defined]


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
        *(getattr(Tensor, name) for name in ("new_zeros", "new_ones", "new_empty", "new_full", "is_complex")),
        *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like),
        *(torch.randn_like, torch.is_floating_point, torch.is_complex, torch.numel),
    ]
)
"""What can be asked of a parameter without reading its value."""
_IN_PLACE = frozenset(
    ["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"]
)
