"""How torch operations are written for one env: the table of rules, and what they share.

A rule gets the writer and the node, and returns the env's value. Dimension 0 of a node is the rows, which no
rule may reduce, reorder or mix: dimension d of a node is dimension d - 1 of its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from es_flipout.envs.fused.source import Rule
from es_flipout.envs.fused.traced import Node, NotTraceableError

aten = torch.ops.aten
OPERATIONS: dict[Any, Rule] = {}
"""Rules by torch's operation; `operations` fills it."""


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Registers a rule for operations."""

    def register(rule: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(packets, rule))
        return rule

    return register


def number_text(value: float | bool) -> str:
    """Returns a number as it is written in Python."""
    return f"({value!r})"


def value_dim(node: Node, dim: int, ndim: int | None = None) -> int:
    """Returns a dimension of a node as one of its value.

    Raises:
        NotTraceableError: if it is that of the rows.
    """
    dim = dim % (len(node.shape) if ndim is None else ndim) - 1
    if dim < 0:
        raise NotTraceableError(f"{node.operation} over the envs")
    return dim


def ndim_of(given: Node | Tensor) -> int:
    """Returns the number of dimensions, that of the rows included."""
    return len(given.shape)


def option(node: Node, place: int, name: str, default: Any = None) -> Any:
    """Returns an argument of an operation, by its place or name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
