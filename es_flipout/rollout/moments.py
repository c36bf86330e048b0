"""The moments of the observations of the episodes of a table, kept by block until they are merged.

Sums of floats depend on their order. Within a block episodes are merged in the order of their ids, and blocks
in theirs, so nothing depends on who played what, or on which episode ended first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from es_flipout.normalization import RunningStatistics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MomentRecords:
    """Moments of B sets of observations, in NumPy: they travel between processes.

    Attributes:
        blocks: which set each record is of, int64 [B].
        counts: observations, float64 [B].
        means: their mean per feature, float64 [B, O].
        m2s: sums of squared deviations from it per feature, float64 [B, O].
    """

    blocks: Ints
    counts: Floats
    means: Floats
    m2s: Floats

    @classmethod
    def of(cls, statistics: RunningStatistics, block: int = 0) -> MomentRecords:
        """Returns one record, of the moments that statistics hold."""
        count, mean, m2 = (each.numpy()[None] for each in (statistics.count, statistics.mean, statistics.m2))
        return cls(np.array([block]), count, mean, m2)

    @classmethod
    def pooled(cls, block: int, counts: Sequence[int], sums: Sequence[Floats]) -> MomentRecords:
        """Returns one record, of all observations of M episodes, as `Episodes.record` is given them."""
        points, deviations, squares = torch.from_numpy(np.stack(sums, axis=1))
        weights = torch.tensor(counts, dtype=torch.float64).unsqueeze(1)
        points, deviations, squares = (
            torch.where(weights > 0, each, 0.0) for each in (points, deviations, squares)
        )
        offsets = deviations / weights.clamp(min=1.0)
        means, m2s = points + offsets, (squares - deviations * offsets).clamp(min=0.0)
        statistics = RunningStatistics(points.shape[1])
        statistics.count = weights.sum()
        statistics.mean = (weights * means).sum(dim=0) / statistics.count.clamp(min=1.0)
        statistics.m2 = (m2s + weights * (means - statistics.mean).square()).sum(dim=0)
        return cls.of(statistics, block)

    @classmethod
    def joined(cls, records: Sequence[MomentRecords]) -> MomentRecords:
        """Returns all records, in the order of their blocks; there is at least one."""
        fields = ("blocks", "counts", "means", "m2s")
        blocks, *values = (np.concatenate([getattr(each, name) for each in records]) for name in fields)
        order = np.argsort(blocks, kind="stable")
        return cls(blocks[order], *(each[order] for each in values))

    def merged(self) -> RunningStatistics:
        """Returns the moments of all observations."""
        return RunningStatistics.merged(*map(torch.from_numpy, (self.counts, self.means, self.m2s)))


class BlockMoments:
    """The moments of a table's episodes: of each, until all of its block are there, and then of the block."""

    def __init__(self, block_size: int, num_ids: int) -> None:
        """Knows nothing yet.

        Args:
            block_size: consecutive ids that form a block.
            num_ids: how many ids there are in all.
        """
        self._block_size, self._num_ids = block_size, num_ids
        self._whole: dict[int, MomentRecords] = {}
        self._parts: dict[int, dict[int, tuple[int, Floats]]] = {}  # count and sums, by block and id

    def add(self, ids: Sequence[int], counts: Sequence[int], sums: Floats) -> None:
        """Adds M episodes: their ids, numbers of observations, and sums [3, M, O] (see `Episodes.record`)."""
        for identity, count, each in zip(ids, counts, sums.swapaxes(0, 1), strict=True):
            self._parts.setdefault(identity // self._block_size, {})[identity] = count, each
        self._merge({identity // self._block_size for identity in ids})

    def update(self, other: BlockMoments) -> None:
        """Adds what another part of the same table holds."""
        self._whole |= other._whole
        for block, parts in other._parts.items():
            self._parts.setdefault(block, {}).update(parts)
        self._merge(other._parts)

    def _merge(self, blocks: Iterable[int]) -> None:
        """Merges those blocks of which every episode has ended."""
        for block in blocks:
            if len(self._parts[block]) == min(self._block_size, self._num_ids - block * self._block_size):
                in_order = [each for _, each in sorted(self._parts.pop(block).items())]
                self._whole[block] = MomentRecords.pooled(block, *zip(*in_order, strict=True))

    def replace(self, records: MomentRecords) -> None:
        """Holds these records, instead of those of the blocks."""
        self._whole, self._parts = {int(records.blocks[0]): records}, {}

    def records(self) -> MomentRecords | None:
        """Returns the records of all blocks, in order; None if there are none."""
        return MomentRecords.joined(list(self._whole.values())) if self._whole else None
