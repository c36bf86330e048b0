"""Operations on numbers, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from es_flipout.envs.fused.rules import OPERATIONS, aten, number_text, rule
from es_flipout.envs.fused.source import Rule, Writer
from es_flipout.envs.fused.traced import Node, NotTraceableError
from es_flipout.envs.fused.value import CASTS, Index, Value


def _operand(writer: Writer, given: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[..., str]:
    """Returns the expression of an operand at an index, converted to a dtype."""
    if isinstance(given, Tensor) and given.ndim > len(shape) and len(given) == 1:
        given = given[0]  # the same in all envs
    if isinstance(given, Node | Tensor):
        value = writer.value(given).broadcast(shape)
        if value.dtype == dtype:
            return value.at
        return lambda index: CASTS[dtype].format(value.at(index))
    return lambda index: CASTS[dtype].format(number_text(given))


def _computed_in(node: Node, operands: Sequence[Any]) -> torch.dtype:
    """Returns the dtype that operands are converted to."""
    if node.dtype != torch.bool:
        return node.dtype
    stand_ins = [
        torch.empty((1,) * (each.ndim if isinstance(each, Tensor) else len(each.shape)), dtype=each.dtype)
        if isinstance(each, Node | Tensor)
        else each
        for each in operands
    ]
    result = stand_ins[0]
    for each in stand_ins[1:]:
        result = torch.empty((1,) * getattr(result, "ndim", 0), dtype=torch.result_type(result, each))
    return result.dtype if isinstance(result, Tensor) else torch.float64


def _elementwise(template: str, *, count: int, takes: torch.dtype | None = None) -> Rule:
    """Returns the rule of a function of `count` operands, written with {0}, {1} ..."""

    def rule(writer: Writer, node: Node) -> Value:
        operands = node.args[:count]
        options = {**node.kwargs}
        alpha = options.pop("alpha", node.args[count] if len(node.args) > count else 1)
        if alpha != 1 or any(value is not None for value in options.values()):
            raise NotTraceableError(f"{node.operation} with options")
        shape = tuple(node.shape[1:])
        dtype = takes or _computed_in(node, operands)
        parts = [_operand(writer, each, shape, dtype) for each in operands]
        return writer.filled(
            shape, node.dtype, lambda index: template.format(*(part(index) for part in parts))
        )

    return rule


_UNARY = {
    aten.neg: "(-{0})",
    aten.abs: "abs({0})",
    aten.sqrt: "math.sqrt({0})",
    aten.rsqrt: "(1 / math.sqrt({0}))",
    aten.reciprocal: "(1 / {0})",
    aten.exp: "math.exp({0})",
    aten.expm1: "math.expm1({0})",
    aten.log: "math.log({0})",
    aten.log1p: "math.log1p({0})",
    aten.sin: "math.sin({0})",
    aten.cos: "math.cos({0})",
    aten.tan: "math.tan({0})",
    aten.asin: "math.asin({0})",
    aten.acos: "math.acos({0})",
    aten.atan: "math.atan({0})",
    aten.sinh: "math.sinh({0})",
    aten.cosh: "math.cosh({0})",
    aten.tanh: "math.tanh({0})",
    aten.sigmoid: "(1 / (1 + math.exp(-{0})))",
    aten.floor: "np.floor({0})",
    aten.ceil: "np.ceil({0})",
    aten.relu: "({0} if not {0} < 0 else 0)",
    aten.sign: "(1 if {0} > 0 else -1 if {0} < 0 else 0)",
}
_BINARY = {
    aten.add: "({0} + {1})",
    aten.sub: "({0} - {1})",
    aten.rsub: "({1} - {0})",
    aten.mul: "({0} * {1})",
    aten.div: "({0} / {1})",
    aten.atan2: "math.atan2({0}, {1})",
    aten.hypot: "math.hypot({0}, {1})",
    aten.maximum: "({0} if {0} != {0} or {0} >= {1} else {1})",
    aten.minimum: "({0} if {0} != {0} or {0} <= {1} else {1})",
    aten.eq: "({0} == {1})",
    aten.ne: "({0} != {1})",
    aten.lt: "({0} < {1})",
    aten.le: "({0} <= {1})",
    aten.gt: "({0} > {1})",
    aten.ge: "({0} >= {1})",
}
_LOGICAL = {
    aten.bitwise_and: "({0} and {1})",
    aten.bitwise_or: "({0} or {1})",
    aten.bitwise_xor: "({0} != {1})",
    aten.logical_and: "({0} and {1})",
    aten.logical_or: "({0} or {1})",
    aten.logical_xor: "({0} != {1})",
}
OPERATIONS |= {packet: _elementwise(template, count=1) for packet, template in _UNARY.items()}
OPERATIONS |= {packet: _elementwise(template, count=2) for packet, template in _BINARY.items()}
_of_bools = {packet: _elementwise(text, count=2, takes=torch.bool) for packet, text in _LOGICAL.items()}
_of_bools[aten.bitwise_not] = _of_bools[aten.logical_not] = _elementwise(
    "(not {0})", count=1, takes=torch.bool
)
_TESTS = {aten.isnan: "({0} != {0})", aten.isinf: "(abs({0}) == inf)"}


@rule(*_of_bools)
def _logical(writer: Writer, node: Node) -> Value:
    if node.dtype != torch.bool:
        raise NotTraceableError(f"{node.operation} of integers")
    rule: Rule = _of_bools[node.operation.overloadpacket]
    return rule(writer, node)


@rule(*_TESTS)
def _test(writer: Writer, node: Node) -> Value:
    value, template = writer.value(node.args[0]), _TESTS[node.operation.overloadpacket]
    return writer.filled(value.shape, torch.bool, lambda index: template.format(value.at(index)))


@rule(aten.pow)
def _power(writer: Writer, node: Node) -> Value:
    base, exponent = node.args[:2]
    shape = tuple(node.shape[1:])
    x = _operand(writer, base, shape, node.dtype)
    writer.is_exact &= not isinstance(exponent, Node | Tensor) and exponent == 2
    if not isinstance(exponent, Node | Tensor):
        known = {2: "({0} * {0})", 3: "({0} * {0} * {0})", 0.5: "math.sqrt({0})", 1: "{0}", -1: "(1 / {0})"}
        template = known.get(exponent, "{0} ** " + number_text(float(exponent)))
        return writer.filled(shape, node.dtype, lambda index: template.format(x(index)))
    y = _operand(writer, exponent, shape, node.dtype)
    return writer.filled(shape, node.dtype, lambda index: f"{x(index)} ** {y(index)}")


@rule(aten.clamp, aten.clamp_min, aten.clamp_max)
def _clamp(writer: Writer, node: Node) -> Value:
    bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    if node.operation.overloadpacket is aten.clamp_max:
        bounds = {"max": node.args[1]}
    shape = tuple(node.shape[1:])
    value = _operand(writer, node.args[0], shape, node.dtype)
    for name, sign in (("min", "<"), ("max", ">")):  # NaN stays NaN, and a bound that is NaN gives it
        if bounds.get(name) is not None:
            bound, inner = _operand(writer, bounds[name], shape, node.dtype), value

            def bounded(
                index: Index,
                x: Callable[..., str] = inner,
                b: Callable[..., str] = bound,
                sign: str = sign,
            ) -> str:
                limit = b(index)
                return f"{limit} if {x(index)} {sign} {limit} or {limit} != {limit} else {x(index)}"

            value = writer.filled(shape, node.dtype, bounded).at
    return Value(shape, node.dtype, value)


@rule(aten.where)
def _where(writer: Writer, node: Node) -> Value:
    if len(node.args) != 3:
        raise NotTraceableError("where without values")
    shape = tuple(node.shape[1:])
    condition = _operand(writer, node.args[0], shape, torch.bool)
    one, other = (_operand(writer, each, shape, node.dtype) for each in node.args[1:])
    return writer.filled(
        shape, node.dtype, lambda index: f"{one(index)} if {condition(index)} else {other(index)}"
    )


@rule(aten._to_copy, aten.clone)
def _copy(writer: Writer, node: Node) -> Value:
    value = writer.value(node.args[0])
    return writer.filled(value.shape, node.dtype, value.at)


@rule(aten.new_zeros, aten.zeros_like, aten.new_ones, aten.ones_like, aten.new_full, aten.full_like)
def _filled(writer: Writer, node: Node) -> Value:
    name = str(node.operation.overloadpacket)
    number = 0 if "zeros" in name else 1 if "ones" in name else node.args[2 if "new" in name else 1]
    text = CASTS[node.dtype].format(number_text(number))
    return Value(tuple(node.shape[1:]), node.dtype, lambda index: text)
