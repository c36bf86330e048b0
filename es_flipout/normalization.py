"""Running mean and variance of observations, and the module that standardises by them.

Moments are kept in float64 and merged by the parallel update of Chan, Golub and LeVeque (1979):
with counts a, b and delta = mean_b - mean_a,

    mean = mean_a + delta b / (a + b)        M2 = M2_a + M2_b + delta^2 a b / (a + b)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-8
"""Smallest variance that an observation is divided by; constant features stay near zero."""


class RunningStatistics:
    """Moments of the rows seen so far.

    Attributes:
        count: rows seen, float64 scalar.
        mean: mean a feature, float64 [O].
        m2: sum of squared deviations from the mean a feature, float64 [O].
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(size, dtype=torch.float64, device=device)

    def update(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Counts rows in.

        Args:
            rows: observations [N, O], any floating dtype.
            mask: which rows count, bool [N]; all of them if None. Rows left out may hold NaN.

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
        """Counts in all that `other` has seen."""
        self._merge(other.count, other.mean, other.m2)

    def _merge(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        share = count / total.clamp(min=1.0)
        delta = mean - self.mean
        self.mean = self.mean + delta * share
        self.m2 = self.m2 + m2 + delta.square() * (self.count * share)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Population variance a feature, float64 [O]; ones before two rows have been seen."""
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
        self._missing = [
            min(MERGED_TOGETHER, num_episodes - first) for first in range(0, num_episodes, MERGED_TOGETHER)
        ]
        self._pending: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._next = 0

    def add(self, episodes: Tensor, counts: Tensor, means: Tensor, m2s: Tensor) -> None:
        """Takes the moments of finished episodes; those with a value that is not finite count nothing.

        Args:
            episodes: their indices, int64 [M] on the CPU, each given once.
            counts: observations of each, [M].
            means: their means, [M, O].
            m2s: their sums of squared deviations from these means, [M, O].
        """
        usable = means.isfinite().all(dim=1) & m2s.isfinite().all(dim=1)
        counts = torch.where(usable, counts.to(means), 0.0)
        means, m2s = (torch.where(usable.unsqueeze(1), values, 0.0) for values in (means, m2s))
        for row, episode in enumerate(episodes.tolist()):
            group, place = divmod(episode, MERGED_TOGETHER)
            if group not in self._pending:
                shape = (MERGED_TOGETHER, means.shape[1])
                self._pending[group] = (
                    means.new_zeros(shape[0]),
                    means.new_zeros(shape),
                    means.new_zeros(shape),
                )
            for kept, given in zip(self._pending[group], (counts, means, m2s), strict=True):
                kept[place] = given[row]
            self._missing[group] -= 1
        while self._next < len(self._missing) and self._missing[self._next] == 0:
            self.merged.merge(_pooled(*self._pending.pop(self._next)))
            self._next += 1


def _pooled(counts: Tensor, means: Tensor, m2s: Tensor) -> RunningStatistics:
    """Returns the moments of all rows of several samples, given those of each."""
    pooled = RunningStatistics(means.shape[1], means.device)
    pooled.count = counts.sum()
    weights = counts.unsqueeze(1)
    pooled.mean = (weights * means).sum(dim=0) / pooled.count.clamp(min=1.0)
    pooled.m2 = (m2s + weights * (means - pooled.mean).square()).sum(dim=0)
    return pooled


class ObservationNormalizer(nn.Module):
    """Standardises observations by moments that only `merge` changes.

    The moments are buffers, so they travel with the policy (state dict, device), and are frozen
    between two calls of `merge`: all members of a generation see the same normalisation.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, size: int, clip: float = 10.0) -> None:
        """Creates a normaliser that has seen nothing and changes nothing but the range.

        Args:
            size: number of features O.
            clip: bound on each standardised feature, in standard deviations.
        """
        super().__init__()
        empty = RunningStatistics(size)
        self.register_buffer("count", empty.count)
        self.register_buffer("mean", empty.mean)
        self.register_buffer("m2", empty.m2)
        self.clip = clip
        self._standardizer: tuple[Tensor, Tensor] | None = None

    def statistics(self) -> RunningStatistics:
        """Returns the moments as a value of their own."""
        statistics = RunningStatistics(self.mean.shape[0], self.mean.device)
        statistics.count, statistics.mean = self.count.clone(), self.mean.clone()
        statistics.m2 = self.m2.clone()
        return statistics

    def merge(self, other: RunningStatistics) -> None:
        """Counts the observations of a generation in."""
        merged = self.statistics()
        merged.merge(other)
        self.count, self.mean, self.m2 = merged.count, merged.mean, merged.m2
        self._standardizer = None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._standardizer = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._standardizer = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, observations: Tensor) -> Tensor:
        """Returns standardised observations, same shape and dtype as given ([..., O])."""
        if self._standardizer is None or self._standardizer[0].dtype != observations.dtype:
            scale = _variance(self.count, self.m2).clamp(min=VARIANCE_FLOOR).rsqrt()
            self._standardizer = self.mean.to(observations.dtype), scale.to(observations.dtype)
        mean, scale = self._standardizer
        return ((observations - mean) * scale).clamp_(-self.clip, self.clip)
