"""From a graph of torch operations to a Python function that computes its results env by env.

An operation on single numbers becomes an assignment, one on larger values a loop that fills an array, and one
that only rearranges (a slice, a view) changes how its input is indexed. An operation without a rule
raises `NotTraceableError`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from es_flipout.envs.fused.traced import Graph, Node, NotTraceableError
from es_flipout.envs.fused.value import CASTS, NUMPY_NAMES, Index, Value, cast

MAX_NODES = 500
"""Most operations that are compiled: the time it takes grows faster than their number."""
MAX_CONSTANTS = 4096
"""Largest constant tensor that is written into the source."""

HEADER = '''"""Generated from the hooks of a task, and compiled by numba; es_flipout.envs.fused says how."""

import math

import numba
import numpy as np

inf, nan = math.inf, math.nan


@numba.njit(nogil=True, error_model="numpy", inline="always")
def total(values, count):
    """Adds up numbers in the order that NumPy has for up to 128 of them."""
    if count < 8:
        result = values[0]
        for k in range(1, count):
            result += values[k]
        return result
    parts = values[:8].copy()
    end = count - count % 8
    for start in range(8, end, 8):
        for k in range(8):
            parts[k] += values[start + k]
    result = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]))
    for k in range(end, count):
        result += values[k]
    return result
'''


Rule = Callable[["Writer", Node], Value]
"""Writes the result of an operation."""


class Writer:
    """Writes one function, node by node.

    Attributes:
        constants: lines that define the constants it needs.
        is_exact: whether every operation rounds as torch's does, a sum as NumPy's.
    """

    def __init__(
        self,
        num_rows: int,
        rules: Mapping[Any, Rule],
        inexact: Collection[Any] = (),
        *,
        prefix: str = "",
    ) -> None:
        """Takes the rules.

        Args:
            num_rows: rows of the graphs that are to be written.
            rules: how operations are written, by torch's name.
            inexact: those whose last bit may be another than torch's.
            prefix: part of the names of constants, which all functions of a module share.
        """
        self._prefix = prefix
        self.is_exact = True
        self._rules, self._inexact = rules, inexact
        self._num_rows = num_rows
        self._values: dict[int, Value] = {}
        self._names = (f"v{number}" for number in itertools.count())
        self.constants: list[str] = []
        self._arrays: list[str] = []
        self._lines: list[str] = []

    def value(self, of: Node | Tensor) -> Value:
        """Returns an env's value of a node or of a constant tensor.

        Raises:
            NotTraceableError: if it depends on an operation that cannot be written.
        """
        if isinstance(of, Tensor):
            return self._constant(of)
        return self._values[id(of)]

    def write(
        self, graph: Graph, results: Mapping[str, Node | Tensor], name: str
    ) -> tuple[str, tuple[str, ...]]:
        """Returns the source of a function that computes results of a graph, and the names of its arguments.

        The last argument is `live`, bool [N]: which rows of the results are written.

        Args:
            graph: its arguments are arrays [N, ...] by their names.
            results: by the names of the arrays [N, ...] that they are written to. An array may be an argument
                too: it is written when nothing is left to be read.
            name: of the function.
        """
        needed = _needed(graph, list(results.values()))
        if len(needed) > MAX_NODES:
            raise NotTraceableError(f"the hooks make {len(needed)} operations, of at most {MAX_NODES}")
        arguments = []
        for node in needed:
            if node.dtype not in CASTS:
                raise NotTraceableError(f"numbers of {node.dtype}")
            if node.operation is None:
                arguments.append(node.name)
                self._values[id(node)] = _argument(node)
                continue
            packet = node.operation.overloadpacket
            if packet not in self._rules:
                raise NotTraceableError(f"{packet} has no rule here")
            self.is_exact &= packet not in self._inexact
            self._values[id(node)] = self._rules[packet](self, node)
        names = list(dict.fromkeys([*arguments, *results]))
        values = {target: self.value(result) for target, result in results.items()}
        for target in [each for each in results if each in arguments]:
            value = values[target]
            values[target] = self.filled(value.shape, value.dtype, value.at)
        for target in sorted(values, key=arguments.__contains__):
            self._write_to(target, values[target])
        lines = [f"def {name}({', '.join(names)}, live):"]
        lines += [f"    {line}" for line in self._arrays]
        lines += ["    for n in range(len(live)):", "        if not live[n]:", "            continue"]
        lines += [f"        {line}" for line in self._lines]
        return "\n".join(lines), tuple(names)

    def _write_to(self, target: str, value: Value) -> None:
        """Writes a value to the env's row of an array."""
        self._loop(value.shape, lambda index: f"{target}[{', '.join(('n', *index))}] = {value.at(index)}")

    def filled(self, shape: tuple[int, ...], dtype: torch.dtype, at: Callable[[Index], str]) -> Value:
        """Writes the computation of a value, once for each number of it."""
        name = next(self._names)
        if math.prod(shape) == 1:
            only = ("0",) * len(shape)
            self._lines.append(f"{name} = {cast(at(only), dtype)}")
            return Value(shape, dtype, lambda index: name)
        self._arrays.append(f"{name} = np.empty({shape}, {NUMPY_NAMES[dtype]})")
        self._loop(shape, lambda index: f"{name}[{', '.join(index)}] = {cast(at(index), dtype)}")
        return Value(shape, dtype, lambda index: f"{name}[{', '.join(index)}]")

    def joined(self, parts: Sequence[Value], dim: int, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
        """Writes values one behind the other along a dimension."""
        name, first = next(self._names), 0
        self._arrays.append(f"{name} = np.empty({shape}, {NUMPY_NAMES[dtype]})")
        for part in parts:

            def line(index: Index, part: Value = part, first: int = first) -> str:
                to = (*index[:dim], f"{index[dim]} + {first}", *index[dim + 1 :])
                return f"{name}[{', '.join(to)}] = {cast(part.at(index), dtype)}"

            if part.size:
                self._loop(part.shape, line)
            first += part.shape[dim] if part.shape else 0
        return Value(shape, dtype, lambda index: f"{name}[{', '.join(index)}]")

    def reduced(
        self,
        value: Value,
        dims: Sequence[int],
        dtype: torch.dtype,
        start: str,
        step: Callable[[str, str], str],
    ) -> Value:
        """Writes a reduction over dimensions of a value, which are kept with length 1.

        Args:
            value: what is reduced.
            dims: which dimensions.
            dtype: of the result.
            start: the expression that it begins with.
            step: the expression for the next partial result, from the last one and a number.
        """
        shape = tuple(1 if dim in dims else length for dim, length in enumerate(value.shape))
        target = self.filled(shape, dtype, lambda index: start)

        def line(index: Index) -> str:
            to = target.at(tuple("0" if dim in dims else i for dim, i in enumerate(index)))
            return f"{to} = {cast(step(to, value.at(index)), dtype)}"

        self._loop(value.shape, line)
        return target

    def numpy_sum(self, value: Value) -> Value:
        """Writes the sum of all numbers of a value, with NumPy's rounding if there are up to 128."""
        shape = (1,) * len(value.shape)
        if value.size <= 1:
            zero = cast("0", value.dtype)
            return value.reshaped(shape) if value.size else Value(shape, value.dtype, lambda index: zero)
        self.is_exact &= value.size <= 128
        numbers = self.filled((value.size,), value.dtype, value.reshaped((value.size,)).at)
        name = numbers.at(("0",)).partition("[")[0]
        return self.filled(shape, value.dtype, lambda index: f"total({name}, {value.size})")

    def _loop(self, shape: tuple[int, ...], line: Callable[[Index], str]) -> None:
        """Writes a line for each index of a shape; dimensions of length 1 need no loop."""
        index, depth = [], 0
        for dim, length in enumerate(shape):
            if length == 1:
                index.append("0")
                continue
            self._lines.append(f"{'    ' * depth}for i{dim} in range({length}):")
            index.append(f"i{dim}")
            depth += 1
        self._lines.append(f"{'    ' * depth}{line(tuple(index))}")

    def _constant(self, tensor: Tensor) -> Value:
        """Writes a constant tensor into the source: what is the same in all rows, once."""
        tensor = tensor.detach()
        if tensor.ndim and tensor.shape[0] == self._num_rows:
            if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
                raise NotTraceableError("a constant differs from env to env")
            tensor = tensor[0]
        if tensor.dtype not in CASTS or tensor.numel() > MAX_CONSTANTS:
            raise NotTraceableError(f"a constant of {tensor.numel()} numbers of {tensor.dtype}")
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if tensor.numel() == 1:
            text = repr(tensor.item())
            return Value(shape, dtype, lambda index: cast(text, dtype))
        name = f"C{self._prefix}{len(self.constants)}"
        self.constants.append(f"{name} = np.array({tensor.tolist()}, {NUMPY_NAMES[dtype]})")
        return Value(shape, dtype, lambda index: f"{name}[{', '.join(index)}]")


def _argument(node: Node) -> Value:
    shape = tuple(node.shape[1:])
    return Value(shape, node.dtype, lambda index: f"{node.name}[{', '.join(('n', *index))}]")


def _needed(graph: Graph, results: Sequence[Node | Tensor]) -> list[Node]:
    """Returns the nodes that results depend on, in order."""
    wanted = {id(result) for result in results if isinstance(result, Node)}
    needed = []
    for node in reversed(graph.nodes):
        if id(node) in wanted:
            needed.append(node)
            wanted |= {id(each) for each in _nodes_in((node.args, node.kwargs))}
    return needed[::-1]


def _nodes_in(arguments: object) -> list[Node]:
    if isinstance(arguments, Node):
        return [arguments]
    if isinstance(arguments, Mapping):
        arguments = list(arguments.values())
    return (
        [node for each in arguments for node in _nodes_in(each)]
        if isinstance(arguments, tuple | list)
        else []
    )
