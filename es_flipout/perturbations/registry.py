"""The registry of operation rules: how each torch operation runs with perturbed parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Operation = Callable[..., Any]
Function = TypeVar("Function", bound=Operation)
RULES: dict[Operation, Operation] = {}
"""The rule of every operation that has one; filled by `rule`."""
ELEMENTWISE: set[Operation] = set()
"""Operations that run on parameters written out for every row, whatever their shape."""
SHAPING: set[Operation] = set()
"""The same under torch.vmap only: in a row-wise policy the row dimension gets in the way of a reshape."""


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


def operation_name(operation: Operation) -> str:
    """Returns an operation's name; that of `weight.T` is T."""
    name: str = getattr(operation, "__name__", repr(operation))
    return operation_name(operation.__self__) if name == "__get__" else name  # type: ignore[attr-defined]
