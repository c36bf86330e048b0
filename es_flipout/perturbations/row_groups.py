"""Rows grouped by the base that they use, so that each base meets all of its rows in one operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


class RowGroups:
    """Which base each of N rows uses; shared by all parameters of a selection of members.

    Attributes:
        base_of_row: index of each row's base, int64 [N].
    """

    def __init__(self, base_of_row: Tensor, num_bases: int, *, grouped: bool = False) -> None:
        """Creates the groups.

        Args:
            base_of_row: index of each row's base, int64 [N]; `assign` overwrites it.
            num_bases: bases K.
            grouped: whether they are known to be n * K // N for row n. They are then not read, so that a GPU
                need not be waited for.
        """
        self.base_of_row = base_of_row
        self._num_bases = num_bases
        starts = [-(-k * len(base_of_row) // num_bases) for k in range(num_bases + 1)]  # rounded up
        self._counts = [stop - start for start, stop in itertools.pairwise(starts)]
        self._order: Tensor | None = None
        if not grouped:
            self._sort()

    def assign(self, rows: Tensor, bases: Tensor) -> None:
        """Gives `rows` (int64 [M]) other bases (int64 [M])."""
        self.base_of_row[rows] = bases
        self._sort()

    def _sort(self) -> None:
        self._order = torch.argsort(self.base_of_row, stable=True)
        self._inverse = torch.argsort(self._order)
        self._counts = torch.bincount(self.base_of_row, minlength=self._num_bases).tolist()

    def run(self, operation: Callable[..., Tensor], bases: Tensor, *inputs: Tensor) -> Tensor:
        """Returns operation(inputs, base) of all rows, each with its own base.

        Args:
            operation: takes the rows of each input and one base, and keeps rows first.
            bases: [K, ...].
            inputs: [N, ...] each.
        """
        order = self._order
        sorted_inputs = inputs if order is None else [x[order] for x in inputs]
        parts = zip(*(x.split_with_sizes(self._counts) for x in sorted_inputs), strict=True)
        results = torch.cat([operation(*part, base) for part, base in zip(parts, bases, strict=True)])
        return results if order is None else results[self._inverse]
