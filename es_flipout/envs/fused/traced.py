"""Notes what is done with tensors, so that it can be compiled.

    graph = Graph()
    qpos = graph.argument("qpos", values)
    with graph.noting():
        reward = qpos[:, 0] * 2
    graph.node_of(reward)            # mul, of select, of qpos

Code that reads a value meanwhile (`if`, `item`, `numpy`) raises. What it computes without such a tensor (from
attributes of the task, say) is a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

READS_MEMORY = (
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.data_ptr,
    Tensor.untyped_storage,
)
"""Methods that show values to other code than torch's operations."""


class NotTraceableError(Exception):
    """Something was done with a tensor that cannot be noted; the message says what."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operation and its result, or an argument.

    Attributes:
        operation: torch's operator; None for an argument.
        args: as torch called it, tensors being nodes, or constant tensors.
        kwargs: likewise.
        shape: of the result, rows first.
        dtype: of the result.
        name: of an argument.
        index: which of an operation's results it is.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: torch.Size
    dtype: torch.dtype
    name: str = ""
    index: int = 0


class Graph:
    """What has been noted.

    Attributes:
        nodes: in the order in which they came about.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._of_tensor: dict[int, tuple[Tensor, Node]] = {}  # by identity; the tensor stays alive with it

    def argument(self, name: str, values: Tensor) -> Tensor:
        """Makes values, [N, ...], an argument; returns them."""
        self._note(values, Node(None, (), {}, values.shape, values.dtype, name))
        return values

    def node_of(self, tensor: Tensor) -> Node | Tensor:
        """Returns the node of a tensor; a constant is returned as it is."""
        return self._of_tensor.get(id(tensor), (None, tensor))[1]

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Notes the operations on arguments and on what comes of them.

        Raises:
            NotTraceableError: by code that cannot be noted.
        """
        with _Operations(self), _Functions():
            yield

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation, and notes it if it is on an argument or what came of one."""
        results = operation(*args, **kwargs)
        if not any(id(leaf) in self._of_tensor for leaf in tree_leaves((args, kwargs))):
            return results
        name = operation._schema.name.removeprefix("aten::")
        if operation._schema.is_mutable:
            raise NotTraceableError(f"{name} changes a tensor in place")
        inputs, options = (tree_map(self._noted, given) for given in (args, kwargs))
        for index, result in enumerate(results if isinstance(results, tuple | list) else [results]):
            if not isinstance(result, Tensor):
                raise NotTraceableError(f"{name} reads a value")
            self._note(result, Node(operation, inputs, options, result.shape, result.dtype, index=index))
        return results

    def _note(self, tensor: Tensor, node: Node) -> None:
        self.nodes.append(node)
        self._of_tensor[id(tensor)] = tensor, node

    def _noted(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation of torch to a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes a second or two

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._graph.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Refuses what would escape `_Operations`."""

    @override
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READS_MEMORY:
            raise NotTraceableError(f"{func.__name__} reads values")
        return func(*args, **(kwargs or {}))
