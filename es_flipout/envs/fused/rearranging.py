"""Operations that show the same numbers elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from es_flipout.envs.fused.rules import aten, ndim_of, option, rule, value_dim
from es_flipout.envs.fused.source import Writer
from es_flipout.envs.fused.traced import Node, NotTraceableError
from es_flipout.envs.fused.value import Index, Value


@rule(aten.detach, aten.alias)
def _same(writer: Writer, node: Node) -> Value:
    return writer.value(node.args[0])


@rule(aten.select)
def _select(writer: Writer, node: Node) -> Value:
    given, dim, place = node.args
    value, dim = writer.value(given), value_dim(node, dim, ndim_of(given))
    fixed = str(place % value.shape[dim])
    return Value(
        tuple(node.shape[1:]), node.dtype, lambda index: value.at((*index[:dim], fixed, *index[dim:]))
    )


@rule(aten.slice)
def _slice(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    dim, start, step = option(node, 1, "dim", 0), option(node, 2, "start"), option(node, 4, "step", 1)
    value = writer.value(given)
    if dim % ndim_of(given) == 0:
        if node.shape != given.shape:
            raise NotTraceableError("a slice of the envs")
        return value
    dim = value_dim(node, dim)
    length = value.shape[dim]
    first = min(max((start or 0) + (length if (start or 0) < 0 else 0), 0), length)

    def at(index: Index) -> str:
        place = f"({index[dim]} * {step} + {first})" if step != 1 else f"({index[dim]} + {first})"
        return value.at((*index[:dim], place, *index[dim + 1 :]))

    return Value(tuple(node.shape[1:]), node.dtype, at)


@rule(aten.view, aten._unsafe_view)
def _view(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    if node.shape[0] != given.shape[0]:
        raise NotTraceableError("a view that mixes the envs")
    return writer.value(given).reshaped(tuple(node.shape[1:]))


@rule(aten.unsqueeze, aten.squeeze)
def _with_or_without_ones(writer: Writer, node: Node) -> Value:
    if node.shape[:1] != node.args[0].shape[:1]:
        raise NotTraceableError(f"{node.operation} of the envs")
    return writer.value(node.args[0]).reshaped(tuple(node.shape[1:]))


@rule(aten.expand)
def _expand(writer: Writer, node: Node) -> Value:
    given = node.args[0]
    if len(given.shape) != len(node.shape):
        raise NotTraceableError("an expansion by further dimensions")
    return writer.value(given).broadcast(tuple(node.shape[1:]))


@rule(aten.permute, aten.transpose)
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


@rule(aten.split, aten.split_with_sizes, aten.unbind)
def _part(writer: Writer, node: Node) -> Value:
    given, packet = node.args[0], node.operation.overloadpacket
    options = [*node.args[1:], *node.kwargs.values()]
    if packet is aten.unbind:
        dim = value_dim(node, options[0] if options else 0, ndim_of(given))
        value, fixed = writer.value(given), str(node.index)
        return Value(
            tuple(node.shape[1:]), node.dtype, lambda index: value.at((*index[:dim], fixed, *index[dim:]))
        )
    dim = value_dim(node, options[1] if len(options) > 1 else 0)
    sizes = options[0]
    first = sizes * node.index if packet is aten.split else sum(sizes[: node.index])
    value = writer.value(given)
    return Value(
        tuple(node.shape[1:]),
        node.dtype,
        lambda index: value.at((*index[:dim], f"({index[dim]} + {first})", *index[dim + 1 :])),
    )


@rule(aten.index, aten.index_select)
def _index(writer: Writer, node: Node) -> Value:
    """Of one constant list of indices, along one dimension."""
    value = writer.value(node.args[0])
    if node.operation.overloadpacket is aten.index_select:
        dim, places = value_dim(node, node.args[1]), node.args[2]
    else:
        found = [(dim, each) for dim, each in enumerate(node.args[1]) if each is not None]
        if len(found) != 1:
            raise NotTraceableError("an index of several dimensions")
        dim, places = value_dim(node, found[0][0]), found[0][1]
    if not isinstance(places, Tensor) or places.dtype == torch.bool or places.ndim != 1:
        raise NotTraceableError("an index that is no constant list")
    table = writer.value(places % value.shape[dim])
    return Value(
        tuple(node.shape[1:]),
        node.dtype,
        lambda index: value.at((*index[:dim], table.at((index[dim],)), *index[dim + 1 :])),
    )


@rule(aten.cat, aten.stack)
def _joined(writer: Writer, node: Node) -> Value:
    parts = [writer.value(each) for each in node.args[0]]
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim, shape = value_dim(node, given), tuple(node.shape[1:])
    if node.operation.overloadpacket is aten.stack:
        parts = [part.reshaped((*part.shape[:dim], 1, *part.shape[dim:])) for part in parts]
    return writer.joined(parts, dim, shape, node.dtype)
