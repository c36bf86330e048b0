"""What the policies of runs do now: the returns of episodes that were played for the report, and films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from es_flipout.report.curves import interval
from es_flipout.report.groups import Group
from es_flipout.report.runs import Floats, Run

MAX_NAME = 16
"""Characters of a run's name beside its returns."""


@dataclass(frozen=True)
class Played:
    """Episodes of a policy in the official environment, from fixed reset seeds.

    Attributes:
        run: whose policy it is.
        which: the checkpoint, or the checkpoints that hold the same policy: best, last.
        generation: after which it was saved; None if that is not known.
        returns: of the episodes [E]; NaN for one that failed.
        failures: failed episodes by reason.
        problem: why there are no episodes; None if there are.
    """

    run: Run
    which: str
    generation: int | None = None
    returns: Floats = field(default_factory=lambda: np.empty(0))
    failures: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None

    @property
    def finished(self) -> Floats:
        """Returns of the episodes that did not fail."""
        return self.returns[np.isfinite(self.returns)]

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the mean return; NaN for fewer than two episodes."""
        low, high = interval(self.finished)
        return float(low), float(high)


@dataclass(frozen=True)
class Filmed:
    """A film of the best policy of a group, or why there is none.

    Attributes:
        run: whose policy it is.
        caption: what it shows.
        video: an MP4 file in base64; None if there is none.
        problem: why there is none.
    """

    run: Run
    caption: str = ""
    video: str | None = None
    problem: str | None = None


def strip_figure(played: Sequence[Played], groups: Sequence[Group]) -> dict[str, Any]:
    """Returns the figure of returns, one row for each policy: the episodes, and their mean with its interval.

    It is for the page's script: `traces`, and `rows`, the labels of the rows from the top.
    """
    group_of = {run.name: group for group in groups for run in group.runs}
    shown = [each for each in played if len(each.finished)]
    traces, rows = [], []
    for row, each in enumerate(shown):
        group, mean, (low, high) = group_of[each.run.name], float(each.finished.mean()), each.interval
        name = f"{escape(each.run.name)}, {each.which}"
        rows.append(f"{group.letter} {escape(_cut(each.run.name))}, {each.which}")
        count = len(each.finished)
        # A fixed spread, so that episodes with the same return can be told apart.
        heights = row + (np.arange(count) * 0.618 % 1 - 0.5) * 0.5
        about = {"group": group.index, "role": "episodes"}
        label = f"<b>%{{x:.5~g}}</b><br>{group.letter}: {name}<extra></extra>"
        traces.append(_points(each.finished, heights, about, label))
        traces.append(_points([mean], [row], {**about, "role": "average"}, label))
        if np.isfinite(low):
            traces[-1].error_x = {"array": [high - mean], "arrayminus": [mean - low], "symmetric": False}
    return {"traces": list(go.Figure(traces).to_dict()["data"]), "rows": rows}


def _points(x: ArrayLike, y: ArrayLike, meta: Mapping[str, Any], label: str) -> go.Scatter:
    return go.Scatter(x=np.asarray(x), y=np.asarray(y), mode="markers", meta=meta, hovertemplate=label)


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
