"""Values that change over a run: by the share of the budget that is used, or by what episodes reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from es_flipout.run.checks import require, require_positive


@dataclass(frozen=True)
class ScheduleConfig:
    """How a value moves from its start to `final_fraction` of it over the run's budget."""

    kind: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    """Shape of the decay; constant keeps the initial value."""
    final_fraction: float = 0.1
    """Value at the end of the budget, as a fraction of the initial value."""

    def __post_init__(self) -> None:
        require_positive("schedule.final_fraction", self.final_fraction)

    def value(self, initial: float, progress: float) -> float:
        """Returns the value at `progress` in [0, 1] of the budget (clamped), from `initial` at 0."""
        progress = min(max(progress, 0.0), 1.0)
        final = initial * self.final_fraction
        if self.kind == "linear":
            return initial + (final - initial) * progress
        if self.kind == "cosine":
            return final + (initial - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.kind == "exponential":
            return initial * math.pow(self.final_fraction, progress)
        return initial


@dataclass(frozen=True)
class EpisodeLimitConfig:
    """A limit on the length of training episodes that starts short and grows as members reach it."""

    initial: int | None = None
    """Initial limit in env steps; null for no limit other than the environment's own."""
    threshold: float = 0.5
    """The limit grows after a generation in which at least this share of the episodes reached it."""
    growth: float = 1.5
    """Factor by which the limit grows."""

    def __post_init__(self) -> None:
        require_positive("rollout.episode_limit.initial", self.initial)
        require(
            0 < self.threshold <= 1,
            f"rollout.episode_limit.threshold must be in (0, 1], got {self.threshold}",
        )
        require(
            self.growth > 1 and math.isfinite(self.growth),
            f"rollout.episode_limit.growth must be > 1, got {self.growth}",
        )

    def next(self, limit: int | None, share_reached: float) -> int | None:
        """Returns the limit of the next generation, given the share of episodes that reached this one."""
        if limit is None or share_reached < self.threshold:
            return limit
        return max(limit + 1, int(limit * self.growth))
