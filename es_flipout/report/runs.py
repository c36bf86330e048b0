"""A run as a report sees it: its configuration, its metrics, its starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_flipout.run.config import Config
from es_flipout.run.run_directory import RunDirectory

Floats = NDArray[np.float64]
Metrics = Mapping[str, Any]
"""The metrics of one generation, as `RunDirectory.read_metrics` returns them."""


@dataclass(frozen=True)
class Run:
    """A run that has been read.

    Attributes:
        directory: where it lies.
        name: tells it from the other runs of the report.
        config: the resolved configuration.
        metrics: of every generation, oldest first.
        starts: when and where its processes started; empty if it does not say.
        written: when its metrics, or its configuration if there are none, were last written.
    """

    directory: RunDirectory
    name: str
    config: Config
    metrics: Sequence[Metrics]
    starts: Sequence[Mapping[str, Any]]
    written: datetime

    @classmethod
    def read(cls, directory: RunDirectory, name: str) -> Run:
        """Reads what a run has written so far.

        Raises:
            RunError: if its configuration or its metrics are damaged.
        """
        config = directory.read_config()
        file = directory.metrics if directory.metrics.exists() else directory.config
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        starts = [start for start in directory.read_starts() if _is_timed(start)]
        return cls(directory, name, config, directory.read_metrics(), starts, written)

    def values(self, key: str) -> Floats:
        """Returns a metric of every generation, [G]; NaN where there is none.

        Args:
            key: its name, dotted for one within another, such as `timing.seconds`.
        """
        return np.array([_number(each, key) for each in self.metrics], dtype=np.float64)

    def curve(self, key: str, over: str) -> tuple[Floats, Floats]:
        """Returns a metric over another one, both [n], for the n generations that have both."""
        x, y = self.values(over), self.values(key)
        known = np.isfinite(x) & np.isfinite(y)
        order = np.argsort(x[known], kind="stable")
        return x[known][order], y[known][order]

    @property
    def started(self) -> datetime | None:
        """When its first process started; None if it is not recorded."""
        return start_time(self.starts[0]) if self.starts else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted name, apart from where the run is stored."""
        return {name: value for name, value in _flat(asdict(self.config), "") if name != "out"}

    @property
    def best(self) -> Metrics | None:
        """The generation of the highest score; None if there is no score."""
        scored = self._scored
        return max(scored, key=lambda each: _number(each, "score")) if scored else None

    @property
    def last(self) -> Metrics | None:
        """The last generation with a score; None if there is no score."""
        scored = self._scored
        return scored[-1] if scored else None

    @property
    def _scored(self) -> list[Metrics]:
        return [each for each in self.metrics if math.isfinite(_number(each, "score"))]

    def total(self, key: str) -> float:
        """Returns the last value of a metric that only grows; 0 before the first generation."""
        known = self.values(key)
        known = known[np.isfinite(known)]
        return float(known[-1]) if len(known) else 0.0

    @property
    def progress(self) -> float | None:
        """Used share of the budget, in [0, 1]; None for a run without a limit."""
        if not self.config.has_budget:
            return None
        return self.config.progress(int(self.total("generation")), int(self.total("env_steps")))

    def failures(self, key: str) -> dict[str, int]:
        """Returns failed episodes by reason over all generations, most frequent first.

        Args:
            key: `failures` of members, or `score_failures`.
        """
        counts: dict[str, int] = {}
        for each in self.metrics:
            found = each.get(key)
            for reason, count in found.items() if isinstance(found, Mapping) else ():
                counts[reason] = counts.get(reason, 0) + int(count)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def start_time(start: Mapping[str, Any]) -> datetime:
    """Returns when a process of a run started.

    Raises:
        ValueError: if that is not a time.
    """
    return datetime.fromisoformat(str(start.get("time")))


def _is_timed(start: Mapping[str, Any]) -> bool:
    try:
        start_time(start)
    except ValueError:
        return False
    return True


def _number(metrics: Metrics, key: str) -> float:
    """Returns a figure by its dotted name; NaN if it is missing or is not a number."""
    value: Any = metrics
    for part in key.split(".", 1):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found
