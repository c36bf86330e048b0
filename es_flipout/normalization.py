"""Running mean and variance of observations, and the module that standardizes observations with them.

Moments are kept in float64 and merged by the parallel update of Chan, Golub and LeVeque (1979):
with counts a, b and delta = mean_b - mean_a,

    mean = mean_a + delta b / (a + b)        M2 = M2_a + M2_b + delta^2 a b / (a + b)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

VARIANCE_FLOOR = 1e-8
"""Lower bound of the variance in the denominator: constant features stay near zero."""
OBSERVATION_CLIP = 10.0
"""Default bound on each standardized observation, in standard deviations."""


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


MERGED_TOGETHER = 64
"""Episodes whose moments are merged in one go."""


class EpisodeMoments:
    """Merges the moments of episodes in the order of their index, whatever order they end in.

    Sums of floats depend on their order. This way the moments of a generation do not depend on which
    episode ran in which slot, nor on how many slots there were.
    """

    def __init__(self, size: int, num_episodes: int, device: torch.device | str = "cpu") -> None:
        """Creates the moments of no episode.

        Args:
            size: number of features O.
            num_episodes: how many episodes there will be.
            device: where the moments are kept.
        """
        self.merged = RunningStatistics(size, device)
        self._sizes = [
            min(MERGED_TOGETHER, num_episodes - first) for first in range(0, num_episodes, MERGED_TOGETHER)
        ]
        self._pending: dict[int, dict[int, tuple[int, Tensor]]] = {}
        self._next = 0

    def add(self, episodes: Sequence[int], counts: Sequence[int], sums: Tensor) -> None:
        """Takes the moments of finished episodes; those with a value that is not finite count nothing.

        Args:
            episodes: their indices, M of them, each given once.
            counts: observations of each, M of them; 0 leaves an episode out.
            sums: of each some point in the observations' midst, and the sum and the sum of squares of
                their deviations from it, [3, M, O].
        """
        for episode, count, row in zip(episodes, counts, sums.unbind(dim=1), strict=True):
            self._pending.setdefault(episode // MERGED_TOGETHER, {})[episode] = count, row
        while self._next < len(self._sizes) and (
            len(self._pending.get(self._next, ())) == self._sizes[self._next]
        ):
            rows = [row for _, row in sorted(self._pending.pop(self._next).items())]
            self.merged.merge(
                _pooled(torch.tensor([count for count, _ in rows]), torch.stack([row for _, row in rows], 1))
            )
            self._next += 1


def _pooled(counts: Tensor, sums: Tensor) -> RunningStatistics:
    """Returns the moments of all rows of several samples, given counts [M] and `sums` [3, M, O] as above."""
    counts = torch.where(sums.isfinite().all(dim=2).all(dim=0), counts, 0)
    points, deviations, squares = torch.where((counts > 0).unsqueeze(1), sums, 0.0)
    weights = counts.to(sums).unsqueeze(1)
    offsets = deviations / weights.clamp(min=1.0)
    means, m2s = points + offsets, (squares - deviations * offsets).clamp(min=0.0)
    pooled = RunningStatistics(sums.shape[2], sums.device)
    pooled.count = weights.sum()
    pooled.mean = (weights * means).sum(dim=0) / pooled.count.clamp(min=1.0)
    pooled.m2 = (m2s + weights * (means - pooled.mean).square()).sum(dim=0)
    return pooled


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
