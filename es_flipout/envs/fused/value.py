"""What an env has of a traced tensor: Python expressions for its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Index = tuple[str, ...]
"""One Python expression for each dimension of an env's value."""
CASTS = {
    torch.float64: "np.float64({})",
    torch.float32: "np.float32({})",
    torch.int64: "np.int64({})",
    torch.int32: "np.int32({})",
    torch.bool: "(({}) != 0)",
}
"""How an expression becomes one of a dtype."""
NUMPY_NAMES = {
    torch.float64: "np.float64",
    torch.float32: "np.float32",
    torch.int64: "np.int64",
    torch.int32: "np.int32",
    torch.bool: "np.bool_",
}


@dataclass(frozen=True)
class Value:
    """What an env has of a node: how to write each of its numbers.

    Attributes:
        shape: without the rows.
        dtype: of the numbers.
        at: the expression for the number at an index.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    at: Callable[[Index], str]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def broadcast(self, shape: tuple[int, ...]) -> Value:
        """Returns the value repeated along the dimensions that it lacks, or has of length 1."""
        skipped = len(shape) - len(self.shape)

        def at(index: Index) -> str:
            own = index[skipped:]
            return self.at(
                tuple("0" if length == 1 else i for i, length in zip(own, self.shape, strict=True))
            )

        return self if shape == self.shape else Value(shape, self.dtype, at)

    def reshaped(self, shape: tuple[int, ...]) -> Value:
        """Returns the same numbers, in row-major order, in another shape."""
        if shape == self.shape:
            return self

        def at(index: Index) -> str:
            flat = " + ".join(
                f"{i} * {math.prod(shape[dim + 1 :])}" for dim, i in enumerate(index) if shape[dim] > 1
            )
            return self.at(_unraveled(flat or "0", self.shape))

        return Value(shape, self.dtype, at)


def _unraveled(flat: str, shape: tuple[int, ...]) -> Index:
    if len(shape) == 1:
        return (flat,)
    index = []
    for dim, length in enumerate(shape):
        below = math.prod(shape[dim + 1 :])
        one = f"({flat})" if below == 1 else f"(({flat}) // {below})"
        index.append(one if dim == 0 else f"({one} % {length})")
    return tuple(index)


def cast(expression: str, dtype: torch.dtype) -> str:
    """Returns the expression of a number converted to a dtype of `CASTS`."""
    return CASTS[dtype].format(expression)
