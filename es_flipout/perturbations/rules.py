"""Rules: how a torch operation runs when some of its parameters differ from row to row.

A `PerturbedParameter` stands in for a parameter while a policy runs. When an operation meets one, torch
hands the whole call over (`__torch_function__`), and the rule registered for that operation computes
the result with each row's own weights. The policy's author sees none of it. To support another
operation, register a rule:

    @rule(torch.nn.functional.linear)
    def linear(input, weight, bias=None): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.base import ParameterNoise
from es_flipout.perturbations.independent import DenseNoise
from es_flipout.perturbations.rowwise import rowwise_linear

Operation = Callable[..., Any]
RULES: dict[Operation, Operation] = {}
"""Every supported operation and how it runs; filled by `rule`."""


class UnsupportedOperationError(NotImplementedError):
    """A perturbed parameter met an operation that has no rule."""


class PerturbedParameter(Tensor):
    """A parameter whose value differs from row to row: plain + noise.

    Attributes:
        plain: the unperturbed value, [*shape].
        noise: the scaled noise of N rows.
        parameter_name: the parameter's name in its module.
        num_rows: N.
    """

    plain: Tensor
    noise: ParameterNoise
    parameter_name: str
    num_rows: int

    @staticmethod
    def of(
        name: str, value: Tensor, noise: ParameterNoise | None = None, num_rows: int = 0
    ) -> PerturbedParameter:
        """Makes the stand-in for parameter `name` of value `value`; the noise may be set later."""
        stand_in = value.detach().as_subclass(PerturbedParameter)
        stand_in.plain = value.detach()
        stand_in.parameter_name = name
        if noise is not None:
            stand_in.noise, stand_in.num_rows = noise, num_rows
        return stand_in

    def rows(self) -> Tensor:
        """Returns the value in every row, [N, *shape]."""
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
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        raise UnsupportedOperationError(
            f"no rule for the operation {_operation_name(func)!r} on the perturbed parameter "
            f"{', '.join(_parameter_names((*args, *kwargs.values())))}; register one with "
            "es_flipout.perturbations.rule"
        )


def _operation_name(operation: Operation) -> str:
    """Returns an operation's name; that of `weight.T` is T."""
    name: str = getattr(operation, "__name__", repr(operation))
    return _operation_name(operation.__self__) if name == "__get__" else name  # type: ignore[attr-defined]


def _parameter_names(arguments: Iterable[Any]) -> list[str]:
    """Returns the names of the perturbed parameters among arguments and lists of them."""
    names: list[str] = []
    for argument in arguments:
        if isinstance(argument, PerturbedParameter):
            names.append(repr(argument.parameter_name))
        elif isinstance(argument, list | tuple):
            names.extend(_parameter_names(argument))
    return names


_ATTRIBUTES: frozenset[Operation] = frozenset(
    [
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "grad", "layout")
        ),
        *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "__len__")),
    ]
)


def rule(*operations: Operation) -> Callable[[Operation], Operation]:
    """Registers the decorated function as the way to run `operations` with perturbed parameters.

    The function gets the operation's own arguments, any of which may be a `PerturbedParameter`, and
    returns a plain tensor with the rows first.
    """

    def register(function: Operation) -> Operation:
        for operation in operations:
            RULES[operation] = function
        return function

    return register


def _check_rows(operation: str, input: Tensor, parameter: PerturbedParameter) -> None:
    if input.shape[0] != parameter.num_rows:
        raise ValueError(
            f"{operation} got an input of shape {list(input.shape)}, but the members of "
            f"{parameter.num_rows} rows were selected: the first dimension must be the row"
        )


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Runs y = x Wᵀ + b with W, b or both perturbed; the input is [N, ..., I], the result [N, ..., J]."""
    if isinstance(input, PerturbedParameter):
        raise UnsupportedOperationError(
            f"parameter {input.parameter_name!r} is the input of a linear map; there is no rule for that"
        )
    if input.ndim < 2:
        raise ValueError(
            f"linear got an input of shape {list(input.shape)}: the first dimension must be the row"
        )
    plain_weight = weight.plain if isinstance(weight, PerturbedParameter) else weight
    plain_bias = bias.plain if isinstance(bias, PerturbedParameter) else bias
    outputs = rowwise_linear(input, plain_weight, plain_bias)
    if isinstance(weight, PerturbedParameter):
        _check_rows("linear", input, weight)
        outputs = weight.noise.add_linear(outputs, input)
    if isinstance(bias, PerturbedParameter):
        _check_rows("linear", input, bias)
        outputs = outputs + _align(bias.noise.dense(), outputs.ndim)
    return outputs


def _align(rows: Tensor, ndim: int) -> Tensor:
    """Returns rows [N, *shape] as [N, 1, ..., *shape], so that they broadcast against `ndim` dimensions."""
    if rows.ndim == ndim:
        return rows
    return rows.view(rows.shape[0], *(1,) * (ndim - rows.ndim), *rows.shape[1:])


def _elementwise(operation: Operation) -> Operation:
    """Returns how `operation` runs when some of its arguments are perturbed vectors or scalars.

    A tensor of more dimensions than the parameters has the row as its first; others are constants. The
    result of parameters and constants alone, as in `log_std.exp()`, is a perturbed parameter again.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        parameters = [arg for arg in tensors if isinstance(arg, PerturbedParameter)]
        for parameter in parameters:
            if parameter.plain.ndim > 1:
                raise UnsupportedOperationError(
                    "elementwise operations are supported for vector parameters, "
                    f"but {parameter.parameter_name!r} has shape {list(parameter.plain.shape)}"
                )
        width = max(parameter.plain.ndim for parameter in parameters)
        inputs = [arg for arg in tensors if not isinstance(arg, PerturbedParameter) and arg.ndim > width]
        for tensor in inputs:
            _check_rows(_operation_name(operation), tensor, parameters[0])
        ndim = max((tensor.ndim for tensor in inputs), default=width + 1)

        def apply(value_of: Callable[[PerturbedParameter], Tensor]) -> Tensor:
            def resolve(arg: Any) -> Any:
                return value_of(arg) if isinstance(arg, PerturbedParameter) else arg

            keywords = {key: resolve(value) for key, value in kwargs.items()}
            result: Tensor = operation(*map(resolve, args), **keywords)
            return result

        rows = apply(lambda parameter: _align(parameter.rows(), ndim))
        if inputs:
            return rows
        plain = apply(lambda parameter: parameter.plain)
        names = " and ".join(parameter.parameter_name for parameter in parameters)
        return PerturbedParameter.of(names, plain, DenseNoise(rows - plain), parameters[0].num_rows)

    return run


_ELEMENTWISE_NAMES = (
    *("add", "sub", "mul", "div", "true_divide", "pow", "neg", "exp", "log", "sqrt", "rsqrt", "square"),
    *("abs", "tanh", "sigmoid", "relu", "clamp", "maximum", "minimum", "rsub"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__"),
    *("__neg__", "__pow__", "__rpow__"),
)
for _owner in (torch, Tensor):
    for _name in _ELEMENTWISE_NAMES:
        if (_function := getattr(_owner, _name, None)) is not None:
            rule(_function)(_elementwise(_function))
for _function in (F.softplus, F.relu, F.elu, F.silu):
    rule(_function)(_elementwise(_function))
