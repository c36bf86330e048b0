"""Named entries of `info` as metrics of episodes: of the last step, or their mean or maximum over the steps.

An entry that a step does not have, or that is NaN there, is absent: means and maxima are over the steps that
have it, and an episode that ends without it has no value. Bools count as 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from es_flipout.envs.contract import OWN_INFO
from es_flipout.rollout.moments import Floats, Ints


@dataclass(frozen=True)
class InfoMetric:
    """A metric of an episode.

    Attributes:
        name: as it is asked for: NAME, mean:NAME or max:NAME.
        kind: what is taken of the values of all steps.
        entry: of `info`, NAME.
    """

    name: str
    kind: Literal["last", "mean", "max"]
    entry: str

    @classmethod
    def parse(cls, name: str) -> InfoMetric:
        """Returns what a name stands for.

        Raises:
            ValueError: if no entry is named, or one that means something else in every environment.
        """
        prefix, colon, rest = name.partition(":")
        if colon and prefix in ("mean", "max"):
            metric = cls(name, "mean" if prefix == "mean" else "max", rest)
        else:
            metric = cls(name, "last", name)
        if not metric.entry or metric.entry in OWN_INFO:
            raise ValueError(
                f"{name!r} names no entry of info: give NAME, mean:NAME or max:NAME, where NAME is none of "
                f"{', '.join(OWN_INFO)}"
            )
        return metric


def parse_all(names: Iterable[str]) -> list[InfoMetric]:
    """Returns what several names stand for.

    Raises:
        ValueError: if one names no entry, or occurs twice.
    """
    metrics = [InfoMetric.parse(name) for name in names]
    for index, metric in enumerate(metrics):
        if metric in metrics[:index]:
            raise ValueError(f"{metric.name!r} is there twice")
    return metrics


def entries_of(names: Iterable[str]) -> list[str]:
    """Returns the entries of `info` that metrics need, each once, in order."""
    return list(dict.fromkeys(metric.entry for metric in parse_all(names)))


class InfoRecorder:
    """Follows the entries of `info` through the episodes of N envs."""

    def __init__(self, names: Sequence[str], num_envs: int) -> None:
        """Has no episodes yet.

        Args:
            names: of the metrics.
            num_envs: N.
        """
        self._metrics = parse_all(names)
        self._entries = entries_of(names)
        shape = len(self._entries), num_envs
        self._last, self._max = np.full(shape, np.nan), np.full(shape, np.nan)
        self._sum, self._count = np.zeros(shape), np.zeros(shape)

    def begin(self, envs: Ints) -> None:
        """Begins episodes in `envs`, int64 [M]."""
        self._last[:, envs] = self._max[:, envs] = np.nan
        self._sum[:, envs] = self._count[:, envs] = 0

    def add(self, info: Mapping[str, Any]) -> None:
        """Takes the info of a step, whose entries are tensors [N].

        Raises:
            ValueError: if one has several numbers for each env.
        """
        for row, entry in enumerate(self._entries):
            self._last[row] = self._values(entry, info.get(entry))
        has_it = ~np.isnan(self._last)
        self._sum += np.where(has_it, self._last, 0.0)
        self._count += has_it
        np.fmax(self._max, self._last, out=self._max)

    def _values(self, entry: str, value: Any) -> Floats | float:
        if not isinstance(value, Tensor):
            return np.nan
        num_envs = self._last.shape[1]
        if value.numel() != num_envs:
            raise ValueError(
                f"the info entry {entry!r} has shape {list(value.shape[1:])} in each env, a number is needed"
            )
        values: Floats = value.detach().double().cpu().numpy().reshape(num_envs)
        return values

    def values(self, env: int) -> dict[str, float]:
        """Returns the metrics of the episode in an env, by name; NaN for what it does not have."""
        found = {}
        for metric in self._metrics:
            row = self._entries.index(metric.entry)
            if metric.kind == "mean":
                count = self._count[row, env]
                value = self._sum[row, env] / count if count else np.nan
            else:
                value = (self._last if metric.kind == "last" else self._max)[row, env]
            found[metric.name] = float(value)
        return found
