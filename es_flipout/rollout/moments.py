"""The moments of the observations of a block of episodes, as they travel between processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from es_flipout.normalization import RunningStatistics

Floats = NDArray[np.float64]


class BlockMoments:
    """The moments of the observations of one block, in NumPy: they travel between processes.

    Attributes:
        count: observations.
        mean: their mean per feature, float64 [O].
        m2: sum of squared deviations from it per feature, float64 [O].
    """

    def __init__(self, count: float, mean: Floats, m2: Floats) -> None:
        self.count, self.mean, self.m2 = count, mean, m2

    @classmethod
    def of(cls, statistics: RunningStatistics) -> BlockMoments:
        """Returns the moments that statistics hold."""
        return cls(float(statistics.count), statistics.mean.numpy(), statistics.m2.numpy())

    @classmethod
    def pooled(cls, counts: Sequence[int], sums: Sequence[Floats]) -> BlockMoments:
        """Returns the moments of all observations of M episodes, as `Episodes.record` is given them."""
        points, deviations, squares = torch.from_numpy(np.stack(sums, axis=1))
        weights = torch.tensor(counts, dtype=torch.float64).unsqueeze(1)
        points, deviations, squares = (
            torch.where(weights > 0, each, 0.0) for each in (points, deviations, squares)
        )
        offsets = deviations / weights.clamp(min=1.0)
        means, m2s = points + offsets, (squares - deviations * offsets).clamp(min=0.0)
        count = weights.sum()
        mean = (weights * means).sum(dim=0) / count.clamp(min=1.0)
        m2 = (m2s + weights * (means - mean).square()).sum(dim=0)
        return cls(float(count), mean.numpy(), m2.numpy())

    def statistics(self) -> RunningStatistics:
        """Returns the moments as statistics."""
        statistics = RunningStatistics(len(self.mean))
        statistics.count = torch.tensor(self.count, dtype=torch.float64)
        statistics.mean, statistics.m2 = torch.from_numpy(self.mean), torch.from_numpy(self.m2)
        return statistics
