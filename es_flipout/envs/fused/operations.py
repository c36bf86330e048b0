"""How each torch operation is written for one env; `OPERATIONS` has them by torch's name.

A rule gets the writer and the node, and returns the env's value. Dimension 0 of a node is the rows, which no
rule may reduce, reorder or mix: dimension d of a node is dimension d - 1 of its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from es_flipout.envs.fused.source import CASTS, Value, Writer
from es_flipout.envs.fused.traced import Node, NotTraceableError

aten = torch.ops.aten
Index = tuple[str, ...]
Rule = Callable[[Writer, Node], Value]
OPERATIONS: dict[Any, Rule] = {}


def _rule(*packets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(packets, rule))
        return rule

    return register


ROUNDED_ELSEWHERE = {
    aten.norm,
    aten.linalg_vector_norm,
    aten.exp,
    aten.expm1,
    aten.log,
    aten.log1p,
    aten.sin,
    aten.cos,
    aten.tan,
    aten.asin,
    aten.acos,
    aten.atan,
    aten.atan2,
    aten.hypot,
    aten.sinh,
    aten.cosh,
    aten.tanh,
    aten.sigmoid,
    aten.rsqrt,
    aten.mean,
    aten.prod,
    aten.bmm,
    aten.mm,
    aten.mv,
}
"""Operations whose last bit may be another here than in torch or NumPy; powers beyond squares are, too."""


# Numbers, one by one.


def _number(value: float | bool) -> str:
    return f"({value!r})"


def _operand(writer: Writer, given: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[..., str]:
    """Returns the expression of an operand at an index, converted to a dtype."""
    if isinstance(given, Node | Tensor):
        value = writer.value(given).broadcast(shape)
        if value.dtype == dtype:
            return value.at
        return lambda index: CASTS[dtype].format(value.at(index))
    return lambda index: CASTS[dtype].format(_number(given))


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


@_rule(*_of_bools)
def _logical(writer: Writer, node: Node) -> Value:
    if node.dtype != torch.bool:
        raise NotTraceableError(f"{node.operation} of integers")
    return _of_bools[node.operation.overloadpacket](writer, node)


@_rule(*_TESTS)
def _test(writer: Writer, node: Node) -> Value:
    value, template = writer.value(node.args[0]), _TESTS[node.operation.overloadpacket]
    return writer.filled(value.shape, torch.bool, lambda index: template.format(value.at(index)))


@_rule(aten.pow)
def _power(writer: Writer, node: Node) -> Value:
    base, exponent = node.args[:2]
    shape = tuple(node.shape[1:])
    x = _operand(writer, base, shape, node.dtype)
    writer.is_exact &= not isinstance(exponent, Node | Tensor) and exponent == 2
    if not isinstance(exponent, Node | Tensor):
        known = {2: "({0} * {0})", 3: "({0} * {0} * {0})", 0.5: "math.sqrt({0})", 1: "{0}", -1: "(1 / {0})"}
        template = known.get(exponent, "{0} ** " + _number(float(exponent)))
        return writer.filled(shape, node.dtype, lambda index: template.format(x(index)))
    y = _operand(writer, exponent, shape, node.dtype)
    return writer.filled(shape, node.dtype, lambda index: f"{x(index)} ** {y(index)}")


@_rule(aten.clamp, aten.clamp_min, aten.clamp_max)
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


@_rule(aten.where)
def _where(writer: Writer, node: Node) -> Value:
    if len(node.args) != 3:
        raise NotTraceableError("where without values")
    shape = tuple(node.shape[1:])
    condition = _operand(writer, node.args[0], shape, torch.bool)
    one, other = (_operand(writer, each, shape, node.dtype) for each in node.args[1:])
    return writer.filled(
        shape, node.dtype, lambda index: f"{one(index)} if {condition(index)} else {other(index)}"
    )


@_rule(aten._to_copy, aten.clone)
def _copy(writer: Writer, node: Node) -> Value:
    value = writer.value(node.args[0])
    return writer.filled(value.shape, node.dtype, value.at)


@_rule(aten.new_zeros, aten.zeros_like, aten.new_ones, aten.ones_like, aten.new_full, aten.full_like)
def _filled(writer: Writer, node: Node) -> Value:
    name = str(node.operation.overloadpacket)
    number = 0 if "zeros" in name else 1 if "ones" in name else node.args[2 if "new" in name else 1]
    text = CASTS[node.dtype].format(_number(number))
    return Value(tuple(node.shape[1:]), node.dtype, lambda index: text)


# The same numbers, elsewhere.


@_rule(aten.detach, aten.alias)
def _same(writer: Writer, node: Node) -> Value:
    return writer.value(node.args[0])


def _dim(node: Node, dim: int, ndim: int | None = None) -> int:
    """Returns a dimension of a node as one of its value.

    Raises:
        NotTraceableError: if it is that of the rows.
    """
    dim = dim % (len(node.shape) if ndim is None else ndim) - 1
    if dim < 0:
        raise NotTraceableError(f"{node.operation} over the envs")
    return dim


def _ndim(given: Node | Tensor) -> int:
    return len(given.shape)


@_rule(aten.select)
def _select(writer: Writer, node: Node) -> Value:
    given, dim, place = node.args
    value, dim = writer.value(given), _dim(node, dim, _ndim(given))
    fixed = str(place % value.shape[dim])
    return Value(
        tuple(node.shape[1:]), node.dtype, lambda index: value.at((*index[:dim], fixed, *index[dim:]))
    )


@_rule(aten.slice)
def _slice(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    dim, start, step = _option(node, 1, "dim", 0), _option(node, 2, "start"), _option(node, 4, "step", 1)
    value = writer.value(given)
    if dim % _ndim(given) == 0:
        if node.shape != given.shape:
            raise NotTraceableError("a slice of the envs")
        return value
    dim = _dim(node, dim)
    length = value.shape[dim]
    first = min(max((start or 0) + (length if (start or 0) < 0 else 0), 0), length)

    def at(index: Index) -> str:
        place = f"({index[dim]} * {step} + {first})" if step != 1 else f"({index[dim]} + {first})"
        return value.at((*index[:dim], place, *index[dim + 1 :]))

    return Value(tuple(node.shape[1:]), node.dtype, at)


@_rule(aten.view, aten._unsafe_view)
def _view(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    if node.shape[0] != given.shape[0]:
        raise NotTraceableError("a view that mixes the envs")
    return writer.value(given).reshaped(tuple(node.shape[1:]))


@_rule(aten.unsqueeze, aten.squeeze)
def _with_or_without_ones(writer: Writer, node: Node) -> Value:
    if node.shape[:1] != node.args[0].shape[:1]:
        raise NotTraceableError(f"{node.operation} of the envs")
    return writer.value(node.args[0]).reshaped(tuple(node.shape[1:]))


@_rule(aten.expand)
def _expand(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    if len(given.shape) != len(node.shape):
        raise NotTraceableError("an expansion by further dimensions")
    return writer.value(given).broadcast(tuple(node.shape[1:]))


@_rule(aten.permute, aten.transpose)
def _permute(writer: Writer, node: Node) -> Value:
    given, ndim = node.args[0], len(node.shape)
    if node.operation.overloadpacket is aten.permute:
        order = [dim % ndim for dim in node.args[1]]
    else:
        order = list(range(ndim))
        one, other = node.args[1] % ndim, node.args[2] % ndim
        order[one], order[other] = order[other], order[one]
    if order[0] != 0:
        raise NotTraceableError("a transposition of the envs")
    value, moved = writer.value(given), [dim - 1 for dim in order[1:]]

    def at(index: Index) -> str:
        back = dict(zip(moved, index, strict=True))
        return value.at(tuple(back[dim] for dim in range(len(index))))

    return Value(tuple(node.shape[1:]), node.dtype, at)


@_rule(aten.split, aten.split_with_sizes, aten.unbind)
def _part(writer: Writer, node: Node) -> Value:
    given, packet = node.args[0], node.operation.overloadpacket
    options = [*node.args[1:], *node.kwargs.values()]
    if packet is aten.unbind:
        dim = _dim(node, options[0] if options else 0, _ndim(given))
        value, fixed = writer.value(given), str(node.index)
        return Value(
            tuple(node.shape[1:]), node.dtype, lambda index: value.at((*index[:dim], fixed, *index[dim:]))
        )
    dim = _dim(node, options[1] if len(options) > 1 else 0)
    sizes = options[0]
    first = sizes * node.index if packet is aten.split else sum(sizes[: node.index])
    value = writer.value(given)
    return Value(
        tuple(node.shape[1:]),
        node.dtype,
        lambda index: value.at((*index[:dim], f"({index[dim]} + {first})", *index[dim + 1 :])),
    )


@_rule(aten.index, aten.index_select)
def _index(writer: Writer, node: Node) -> Value:
    """Of one constant list of indices, along one dimension."""
    value = writer.value(node.args[0])
    if node.operation.overloadpacket is aten.index_select:
        dim, places = _dim(node, node.args[1]), node.args[2]
    else:
        found = [(dim, each) for dim, each in enumerate(node.args[1]) if each is not None]
        if len(found) != 1:
            raise NotTraceableError("an index of several dimensions")
        dim, places = _dim(node, found[0][0]), found[0][1]
    if not isinstance(places, Tensor) or places.dtype == torch.bool or places.ndim != 1:
        raise NotTraceableError("an index that is no constant list")
    table = writer.value(places % value.shape[dim])
    return Value(
        tuple(node.shape[1:]),
        node.dtype,
        lambda index: value.at((*index[:dim], table.at((index[dim],)), *index[dim + 1 :])),
    )


@_rule(aten.cat, aten.stack)
def _joined(writer: Writer, node: Node) -> Value:
    parts = [writer.value(each) for each in node.args[0]]
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim, shape = _dim(node, given), tuple(node.shape[1:])
    if node.operation.overloadpacket is aten.stack:
        parts = [part.reshaped((*part.shape[:dim], 1, *part.shape[dim:])) for part in parts]
    return writer.joined(parts, dim, shape, node.dtype)


# Several numbers to one.


def _reduced_dims(node: Node, dims: Any) -> list[int]:
    given = node.args[0]
    every = range(_ndim(given)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [_dim(node, dim, _ndim(given)) for dim in every]


def _option(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _sum(writer: Writer, value: Value, dims: Sequence[int], dtype: torch.dtype) -> Value:
    if dtype.is_floating_point and value.dtype == dtype and len(dims) == len(value.shape):
        return writer.numpy_sum(value)
    return writer.reduced(value, dims, dtype, "0", lambda total, x: f"{total} + {x}")


@_rule(aten.sum, aten.mean)
def _added(writer: Writer, node: Node) -> Value:
    if _option(node, 3, "dtype") is not None:
        raise NotTraceableError(f"{node.operation} with a dtype")
    dims = _reduced_dims(node, _option(node, 1, "dim"))
    value, shape = writer.value(node.args[0]), tuple(node.shape[1:])
    total = _sum(writer, value, dims, node.dtype).reshaped(shape)
    if node.operation.overloadpacket is aten.sum:
        return total
    count = math.prod(value.shape[dim] for dim in dims)
    return writer.filled(shape, node.dtype, lambda index: f"{total.at(index)} / {count}")


@_rule(aten.linalg_vector_norm, aten.norm)
def _norm(writer: Writer, node: Node) -> Value:
    if node.args[1:2] not in ((), (2,), (2.0,)) or _option(node, 4, "dtype") is not None:
        raise NotTraceableError("a norm other than the Euclidean one")
    dims = _reduced_dims(node, _option(node, 2, "dim"))
    value, shape = writer.value(node.args[0]), tuple(node.shape[1:])
    squares = writer.reduced(value, dims, node.dtype, "0", lambda total, x: f"{total} + {x} * {x}")
    total = squares.reshaped(shape)
    return writer.filled(shape, node.dtype, lambda index: f"math.sqrt({total.at(index)})")


_REDUCTIONS = {
    aten.all: ("True", "{0} and ({1} != 0)"),
    aten.any: ("False", "{0} or ({1} != 0)"),
    aten.amax: ("-inf", "({0} if {0} != {0} or {0} >= {1} else {1})"),
    aten.amin: ("inf", "({0} if {0} != {0} or {0} <= {1} else {1})"),
    aten.prod: ("1", "{0} * {1}"),
}


@_rule(*_REDUCTIONS)
def _reduction(writer: Writer, node: Node) -> Value:
    if not node.dtype.is_floating_point and node.dtype != torch.bool:
        raise NotTraceableError(f"{node.operation} of integers")
    start, step = _REDUCTIONS[node.operation.overloadpacket]
    dims = _reduced_dims(node, _option(node, 1, "dim"))
    reduced = writer.reduced(
        writer.value(node.args[0]), dims, node.dtype, start, lambda result, x: step.format(result, x)
    )
    return reduced.reshaped(tuple(node.shape[1:]))


@_rule(aten.bmm, aten.mm, aten.mv)
def _product(writer: Writer, node: Node) -> Value:
    """A matrix product for each env, or of the envs' rows with a constant."""
    one, other = node.args
    left, right = writer.value(one), writer.value(other)
    if node.operation.overloadpacket is not aten.bmm:  # [N, K] with a constant [K] or [K, J]
        if isinstance(other, Node):
            raise NotTraceableError("a matrix product over the envs")
        left = left.reshaped((1, *left.shape))
        right = right.reshaped((right.shape[0], math.prod(right.shape[1:])))
    (rows, inner), columns = left.shape, right.shape[1]
    terms = Value(
        (rows, columns, inner), node.dtype, lambda i: f"{left.at((i[0], i[2]))} * {right.at((i[2], i[1]))}"
    )
    return _sum(writer, terms, [2], node.dtype).reshaped(tuple(node.shape[1:]))
