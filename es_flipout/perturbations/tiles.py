"""Tiles: the parts in which a weighted sum of noise is computed.

The sum is cut by parameters, never by members, so processes can share the tiles out and exchange their values
without adding anything up: the result has the same bits for any number of processes. The cut depends on the
shapes alone, and a single process computes tile by tile, too, because the block of a matrix product need not
have the bits of the same block computed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor

TILE_VALUES = 2**18
"""Values of a tile at most, unless one row has more: smaller ones cost time on several threads."""


@dataclass(frozen=True)
class Tile:
    """A part of a weighted sum of noise.

    Attributes:
        shape: shape of its value.
        dtype: dtype of its value, which is that of the parameters.
        device: where its value is.
        is_part: whether its tensor was cut into several tiles. A tensor of a single tile is small, and is
            computed faster than sent.
        formula: returns the value, in any dtype.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    is_part: bool
    formula: Callable[[], Tensor]

    def compute(self) -> Tensor:
        """Returns the value; it has the same bits in every process with the same noise and weights."""
        return self.formula().to(self.dtype)


ComputeTiles: TypeAlias = Callable[[Sequence[Tile]], list[Tensor]]
"""Returns the values of tiles, in their order, each of its tile's shape, dtype and device."""


def compute_here(tiles: Sequence[Tile]) -> list[Tensor]:
    """Computes all tiles in this process."""
    return [tile.compute() for tile in tiles]


def cut(shape: Sequence[int], most: int = TILE_VALUES) -> list[slice]:
    """Cuts a tensor along its first dimension, into parts of `most` values at most if a row has no more."""
    rows_per_tile = max(1, most // max(1, math.prod(shape[1:])))
    starts = range(0, max(1, shape[0]), rows_per_tile)
    return [slice(start, min(start + rows_per_tile, shape[0])) for start in starts]


def tiles_of(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    formula: Callable[[slice], Tensor],
    most: int = TILE_VALUES,
) -> list[Tile]:
    """Returns the tiles of a tensor.

    Args:
        shape: shape of the tensor.
        dtype: its dtype.
        device: its device.
        formula: returns a slice of its first dimension, in any dtype.
        most: values of a tile at most.
    """
    parts = cut(shape, most)
    return [
        Tile(
            torch.Size((part.stop - part.start, *shape[1:])),
            dtype,
            device,
            len(parts) > 1,
            partial(formula, part),
        )
        for part in parts
    ]


def joined(values: Iterator[Tensor], shape: Sequence[int], most: int = TILE_VALUES) -> Tensor:
    """Takes the values of a tensor's tiles from `values`, and returns the tensor."""
    parts = list(islice(values, len(cut(shape, most))))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
