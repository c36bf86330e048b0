"""The mean of several runs, and how sure it is.

Runs have their points at different env steps and times. Between its points a run is a straight line, so the
mean is one, too, between all of their points; it extends over what all runs have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from es_flipout.report.runs import Floats

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MIN_FOR_BOOTSTRAP = 3
"""Values that a bootstrap interval needs at least; of two, the interval is the range."""


@dataclass(frozen=True)
class MeanCurve:
    """The mean of several curves and its interval, all [n]."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def mean_curve(curves: Sequence[tuple[Floats, Floats]], max_points: int) -> MeanCurve | None:
    """Returns the mean of at least two curves over the range that all share; None if there is no such.

    Args:
        curves: x, rising, and y of each, [n] both.
        max_points: where to thin out.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if len(curves) < 2:
        return None
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    knots = np.unique(np.concatenate([[start, end], *(x for x, _ in curves)]))
    knots = thinned(knots[(knots >= start) & (knots <= end)], max_points)
    if start > end:
        return None
    values = np.stack([np.interp(knots, x, y) for x, y in curves])
    low, high = interval(values)
    return MeanCurve(knots, values.mean(axis=0), low, high)


def interval(values: Floats) -> tuple[Floats, Floats]:
    """Returns the interval of the mean of values [n, ...], as low and high, both [...].

    It is the 95 % percentile bootstrap of at least three values, with the same resamples every time, and the
    range of two. One value has none: NaN.
    """
    count = len(values)
    if count < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    if count < MIN_FOR_BOOTSTRAP:
        return values.min(axis=0), values.max(axis=0)
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, size=NUM_RESAMPLES)
    means = np.tensordot(drawn / count, values, axes=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def interval_name(count: int) -> str:
    """Returns what the interval of so many values is called."""
    return f"{CONFIDENCE:.0%} bootstrap interval" if count >= MIN_FOR_BOOTSTRAP else "range"


def thinned(values: Floats, max_points: int) -> Floats:
    """Returns at most so many values, evenly spread, the first and the last among them."""
    if len(values) <= max_points:
        return values
    kept: Floats = values[np.linspace(0, len(values) - 1, max_points).round().astype(int)]
    return kept
