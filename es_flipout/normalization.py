"""Running mean and variance of observations, and the module that standardizes observations with them.

Moments are kept in float64 and merged by the parallel update of Chan, Golub and LeVeque (1979):
with counts a, b and delta = mean_b - mean_a,

    mean = mean_a + delta b / (a + b)        M2 = M2_a + M2_b + delta^2 a b / (a + b)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.choices import OBSERVATION_CLIP

VARIANCE_FLOOR = 1e-8
"""Lower bound of the variance in the denominator: constant features stay near zero."""


class RunningStatistics:
    """Moments of the rows seen so far.

    Attributes:
        count: rows seen, float64 scalar.
        mean: mean of each feature, float64 [O].
        m2: sum of squared deviations from the mean of each feature, float64 [O].
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(size, dtype=torch.float64, device=device)

    def update(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            rows: observations [N, O], any floating dtype.
            mask: which rows count, bool [N]; all of them if None. The others may hold NaN.

        Raises:
            ValueError: if `rows` is not [N, O], or the mask is not bool [N] (never broadcast).
        """
        if rows.ndim != 2 or rows.shape[1] != self.mean.shape[0]:
            raise ValueError(f"rows must be [N, {self.mean.shape[0]}], got {list(rows.shape)}")
        if mask is not None:
            if mask.shape != rows.shape[:1] or mask.dtype != torch.bool:
                raise ValueError(f"mask must be bool [{rows.shape[0]}], got {mask.dtype} {list(mask.shape)}")
            rows = rows[mask]
        if rows.shape[0] == 0:
            return
        rows = rows.to(torch.float64)
        count = torch.full_like(self.count, rows.shape[0])
        mean = rows.mean(dim=0)
        self._merge(count, mean, (rows - mean).square_().sum(dim=0))

    @classmethod
    def merged(cls, counts: Tensor, means: Tensor, m2s: Tensor) -> RunningStatistics:
        """Returns the moments of B sets of rows, merged in a fixed order: neighbors, then pairs of them, ...

        Args:
            counts: rows of each set, float64 [B].
            means: mean of each feature, float64 [B, O].
            m2s: sum of squared deviations from it, float64 [B, O].
        """
        merged = cls(means.shape[1], means.device)
        while len(counts) > 1:
            pairs = len(counts) // 2 * 2
            left, right = slice(0, pairs, 2), slice(1, pairs, 2)
            totals = counts[left] + counts[right]
            shares = (counts[right] / totals.clamp(min=1.0)).unsqueeze(1)
            deltas = means[right] - means[left]
            spread = deltas.square() * (counts[left].unsqueeze(1) * shares)
            counts = torch.cat([totals, counts[pairs:]])
            m2s = torch.cat([m2s[left] + m2s[right] + spread, m2s[pairs:]])
            means = torch.cat([means[left] + deltas * shares, means[pairs:]])
        if len(counts):
            merged.count, merged.mean, merged.m2 = counts[0], means[0], m2s[0]
        return merged

    def merge(self, other: RunningStatistics) -> None:
        """Adds all rows that `other` has seen."""
        self._merge(*(each.to(self.mean.device) for each in (other.count, other.mean, other.m2)))

    def _merge(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        share = count / total.clamp(min=1.0)
        delta = mean - self.mean
        self.mean = self.mean + delta * share
        self.m2 = self.m2 + m2 + delta.square() * (self.count * share)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Population variance of each feature, float64 [O]; ones until two rows have been seen."""
        return _variance(self.count, self.m2)


def _variance(count: Tensor, m2: Tensor) -> Tensor:
    return torch.where(count > 1, m2 / count.clamp(min=1.0), torch.ones_like(m2))


class ObservationNormalizer(nn.Module):
    """Standardizes observations with moments that only `merge` changes.

    The moments are buffers, so they travel with the policy (state dict, device). They are constant between
    calls of `merge`: all members of a generation see the same normalization.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, size: int, clip: float = OBSERVATION_CLIP) -> None:
        """Creates a normalizer without observations, which only clips.

        Args:
            size: number of features O.
            clip: bound on each standardized feature, in standard deviations.
        """
        super().__init__()
        empty = RunningStatistics(size)
        self.register_buffer("count", empty.count)
        self.register_buffer("mean", empty.mean)
        self.register_buffer("m2", empty.m2)
        self.clip = clip
        self._standardizer: tuple[Tensor, Tensor] | None = None

    def statistics(self) -> RunningStatistics:
        """Returns a copy of the moments."""
        statistics = RunningStatistics(self.mean.shape[0], self.mean.device)
        statistics.count, statistics.mean = self.count.clone(), self.mean.clone()
        statistics.m2 = self.m2.clone()
        return statistics

    def merge(self, other: RunningStatistics) -> None:
        """Adds the observations of a generation."""
        merged = self.statistics()
        merged.merge(other)
        self.count, self.mean, self.m2 = merged.count, merged.mean, merged.m2
        self._standardizer = None

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._standardizer = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._standardizer = None
        super()._load_from_state_dict(*args, **kwargs)

    def standardizer(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns mean and scale, [O] each: standardized observations are (observations - mean) * scale."""
        if self._standardizer is None or self._standardizer[0].dtype != dtype:
            scale = _variance(self.count, self.m2).clamp(min=VARIANCE_FLOOR).rsqrt()
            self._standardizer = self.mean.to(dtype), scale.to(dtype)
        return self._standardizer

    def forward(self, observations: Tensor) -> Tensor:
        """Returns standardized observations [..., O], same dtype, for observations [..., O]."""
        mean, scale = self.standardizer(observations.dtype)
        return ((observations - mean) * scale).clamp(-self.clip, self.clip)
