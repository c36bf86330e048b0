"""Operations that make one number of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from es_flipout.envs.fused.rules import aten, ndim_of, option, rule, value_dim
from es_flipout.envs.fused.source import Writer
from es_flipout.envs.fused.traced import Node, NotTraceableError
from es_flipout.envs.fused.value import Value


def _reduced_dims(node: Node, dims: Any) -> list[int]:
    given = node.args[0]
    every = range(ndim_of(given)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [value_dim(node, dim, ndim_of(given)) for dim in every]


def _sum(writer: Writer, value: Value, dims: Sequence[int], dtype: torch.dtype) -> Value:
    if dtype.is_floating_point and value.dtype == dtype and len(dims) == len(value.shape):
        return writer.numpy_sum(value)
    return writer.reduced(value, dims, dtype, "0", lambda total, x: f"{total} + {x}")


@rule(aten.sum, aten.mean)
def _added(writer: Writer, node: Node) -> Value:
    if option(node, 3, "dtype") is not None:
        raise NotTraceableError(f"{node.operation} with a dtype")
    dims = _reduced_dims(node, option(node, 1, "dim"))
    value, shape = writer.value(node.args[0]), tuple(node.shape[1:])
    total = _sum(writer, value, dims, node.dtype).reshaped(shape)
    if node.operation.overloadpacket is aten.sum:
        return total
    count = math.prod(value.shape[dim] for dim in dims)
    return writer.filled(shape, node.dtype, lambda index: f"{total.at(index)} / {count}")


@rule(aten.linalg_vector_norm, aten.norm)
def _norm(writer: Writer, node: Node) -> Value:
    if node.args[1:2] not in ((), (2,), (2.0,)) or option(node, 4, "dtype") is not None:
        raise NotTraceableError("a norm other than the Euclidean one")
    dims = _reduced_dims(node, option(node, 2, "dim"))
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


@rule(*_REDUCTIONS)
def _reduction(writer: Writer, node: Node) -> Value:
    if not node.dtype.is_floating_point and node.dtype != torch.bool:
        raise NotTraceableError(f"{node.operation} of integers")
    start, step = _REDUCTIONS[node.operation.overloadpacket]
    dims = _reduced_dims(node, option(node, 1, "dim"))
    reduced = writer.reduced(
        writer.value(node.args[0]), dims, node.dtype, start, lambda result, x: step.format(result, x)
    )
    return reduced.reshaped(tuple(node.shape[1:]))


@rule(aten.bmm, aten.mm, aten.mv)
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
