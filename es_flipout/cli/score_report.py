"""What es-eval says about the episodes that it has played: as text, or as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from es_flipout.rollout import Episodes

SHOWN_FAILURES = 3
"""Number of reasons for failed episodes that are shown."""


def figure(value: float) -> str:
    """Returns a number with four significant digits and at least one decimal: 0.001234, -12.35, 6780.3."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    decimals = 1 if value == 0 else max(1, 3 - math.floor(math.log10(abs(value))))
    whole, _, rest = f"{value:.{decimals}f}".partition(".")
    return f"{whole}.{rest[0]}{rest[1:].rstrip('0')}"


def report(episodes: Episodes) -> list[str]:
    """Returns the lines that say what came of some episodes."""
    lines = []
    count, failed, lengths = len(episodes), len(episodes.faults), episodes.lengths
    if failed < count:
        figures = {
            "mean": episodes.mean_return,
            "std": episodes.std_return,
            "min": np.nanmin(episodes.returns),
            "max": np.nanmax(episodes.returns),
        }
        lines.append("return  " + "  ".join(f"{name} {figure(value)}" for name, value in figures.items()))
    if failed:
        reasons = episodes.failures
        whole = f"failed  {failed} of {count} episode{'' if count == 1 else 's'}"
        if len(reasons) == 1:
            lines.append(f"{whole}: {next(iter(reasons))}")
        else:
            shown = list(reasons.items())[:SHOWN_FAILURES]
            lines += [whole, *(f"{number:>7} {reason}" for reason, number in shown)]
            if left := failed - sum(number for _, number in shown):
                lines.append(f"{left:>7} for other reasons, which --json lists")
    for name, values in episodes.info.items():
        found = values[~np.isnan(values)]
        if len(found):
            lines.append(
                f"{name}  mean {figure(found.mean())}  min {figure(found.min())}  max {figure(found.max())}"
            )
        else:
            lines.append(f"{name}  none: no episode has this entry of info")
    lines.append(f"length  mean {figure(lengths.mean())}  min {lengths.min()}  max {lengths.max()}")
    return lines


def as_json(episodes: Episodes) -> dict[str, Any]:
    """Returns the same as plain data, with every episode; what is not a number becomes None."""
    returns, means = _plain(episodes.returns.tolist()), episodes.info_means
    usable = [each for each in returns if each is not None]
    return {
        "mean": episodes.mean_return if usable else None,
        "std": episodes.std_return if usable else None,
        "min": min(usable, default=None),
        "max": max(usable, default=None),
        "returns": returns,
        "lengths": episodes.lengths.tolist(),
        "failures": dict(episodes.failures),
        "info": {
            name: {"mean": _plain([means[name]])[0], "values": _plain(values.tolist())}
            for name, values in episodes.info.items()
        },
    }


def _plain(values: list[float]) -> list[float | None]:
    """Returns numbers, with None for those that are not finite, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values]
