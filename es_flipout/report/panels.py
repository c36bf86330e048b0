"""The panels of a report: which metrics it shows, and their lines over env steps and over wall time.

A line carries its group and its role, and no color: the page's script gives it the color of its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from es_flipout.report.curves import interval_name, mean_curve, thinned
from es_flipout.report.groups import Group
from es_flipout.report.runs import Floats

TIME_UNITS = [("h", 3600.0), ("min", 60.0), ("s", 1.0)]
"""Units of wall time in seconds; the largest of which the longest run has three is used."""
MAX_POINTS = 400
"""Points of a line at most; a longer one is thinned out."""
MAX_MARKED = 40
"""Points of a line that are marked, at most."""
ROLES = ("band", "run", "single", "mean")
"""What a line may be, from the back to the front."""


@dataclass(frozen=True)
class Axis:
    """What lines are drawn over.

    Attributes:
        name: by which the page's script knows it.
        key: the metric, by its dotted name.
        title: of the axis.
        unit: of the axis, in units of the metric.
    """

    name: str
    key: str
    title: str
    unit: float = 1.0


ENV_STEPS = Axis("env_steps", "env_steps", "env steps")


def axes(groups: Sequence[Group]) -> list[Axis]:
    """Returns the axes for groups of one environment."""
    longest = max(run.total("timing.seconds") for group in groups for run in group.runs)
    name, unit = next(((name, unit) for name, unit in TIME_UNITS if longest >= 3 * unit), TIME_UNITS[-1])
    wall_time = Axis("wall_time", "timing.seconds", f"wall time ({name})", unit)
    return [ENV_STEPS, wall_time, Axis("generations", "generation", "generations")]


@dataclass(frozen=True)
class Spec:
    """What a panel shows.

    Attributes:
        key: the metric, by its dotted name.
        title: over the panel.
        about: a line that explains it.
        is_log: whether its axis is logarithmic.
    """

    key: str
    title: str
    about: str
    is_log: bool = False


CURVES = [
    Spec("score", "Score", "Mean return of the center, the unperturbed policy, in the official environment."),
    Spec("score_randomized", "Score, randomized", "Mean return of the center in randomized episodes."),
    Spec("fitness_mean", "Fitness", "Mean fitness of the perturbed members that did not fail."),
]
UPDATES = [
    Spec("gradient_norm", "Gradient norm", "Euclidean norm of the gradient estimate.", is_log=True),
    Spec("update_norm", "Update norm", "Euclidean norm of the step that the optimizer took."),
    Spec("parameter_norm", "Parameter norm", "Euclidean norm of the parameters after the step."),
    Spec("update_ratio", "Update ratio", "Norm of the step over the norm of the parameters.", is_log=True),
    Spec("update_cosine", "Update cosine", "Cosine between a step and the one before: near 1, they agree."),
    Spec("signal_to_noise", "Signal to noise", "Of the gradient estimate: squared norm over variance.", True),
    Spec("tied_fraction", "Tied members", "Share of members with the same fitness as another one."),
    Spec("sigma", "Sigma", "Standard deviation of the perturbation."),
    Spec("lr", "Learning rate", "Of the optimizer."),
    Spec("episode_length", "Episode length", "Mean env steps per episode of a member."),
    Spec("failed_members", "Failed members", "Members without a finite return, which rank worst."),
    Spec("timing.live_share", "Live share", "Share of the env steps computed that advanced an episode."),
    Spec("timing.env_steps_per_second", "Speed", "Live env steps per second, rollouts and update."),
]


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        title: over it.
        about: a line that explains it.
        figure: for the page's script: `views`, with the traces and the title of x by axis, and `yaxis`.
        summary: the same in words.
    """

    title: str
    about: str
    figure: dict[str, Any]
    summary: str


def curve_panels(groups: Sequence[Group]) -> list[Panel]:
    """Returns the panels of score and fitness of groups of one environment."""
    metrics = [each for group in groups for run in group.runs for each in run.metrics]
    names = dict.fromkeys(name for each in metrics for name in each.get("score_info") or {})
    info = [Spec(f"score_info.{name}", name, "Mean over the episodes of the score.") for name in names]
    return _panels([*CURVES, *info], groups)


def update_panels(groups: Sequence[Group]) -> list[Panel]:
    """Returns the panels of what an update looked like, of groups of one environment."""
    failed = [run.values("failed_members") for group in groups for run in group.runs]
    any_failed = any((each > 0).any() for each in failed)
    return _panels([spec for spec in UPDATES if spec.key != "failed_members" or any_failed], groups)


def _panels(specs: Sequence[Spec], groups: Sequence[Group]) -> list[Panel]:
    """Returns the panels of those metrics that any run has."""
    found = []
    for spec in specs:
        views = {
            axis.name: {"title": axis.title, "traces": _traces(groups, spec.key, axis)}
            for axis in axes(groups)
        }
        if views[ENV_STEPS.name]["traces"]:
            figure = {"views": views, "yaxis": _y_axis(spec, groups)}
            found.append(Panel(spec.title, spec.about, figure, _summary(spec, groups)))
    return found


def _y_axis(spec: Spec, groups: Sequence[Group]) -> dict[str, Any]:
    """Returns the y axis of a panel, in Plotly's terms."""
    values = np.concatenate([run.values(spec.key) for group in groups for run in group.runs])
    known = values[np.isfinite(values) & (values > 0)]
    low, high = known.min(initial=np.inf), known.max(initial=0.0)
    if spec.is_log:
        decades = {"dtick": 1} if high >= 10 * low else {}
        return {"type": "log", "exponentformat": "power", **decades}
    # Around what never changes, Plotly would choose an arbitrary range.
    return {"range": [0.0, 2.0 * float(high)]} if low == high and len(known) == len(values) else {}


def _summary(spec: Spec, groups: Sequence[Group]) -> str:
    """Returns the last values of a metric, as a screen reader says them."""
    parts = []
    for group in groups:
        curves = [run.curve(spec.key, ENV_STEPS.key)[1] for run in group.runs]
        last = [float(y[-1]) for y in curves if len(y)]
        if last:
            span = f"{min(last):.4g}" if len(last) == 1 else f"{min(last):.4g} to {max(last):.4g}"
            parts.append(f"{group.letter}, {group.label}: {span}")
    return f"{spec.title}, last values. " + "; ".join(parts)


def _traces(groups: Sequence[Group], key: str, axis: Axis) -> list[dict[str, Any]]:
    """Returns the lines of groups as Plotly's JavaScript takes them, bands first."""
    lines = [line for group in groups for line in _lines(group, key, axis)]
    lines.sort(key=lambda line: ROLES.index(line.meta["role"]))
    return list(go.Figure(lines).to_dict()["data"])


def _lines(group: Group, key: str, axis: Axis) -> list[go.Scatter]:
    """Returns the lines of a group: its mean and interval, and each run, thinly if there is a mean."""
    curves = {run.name: run.curve(key, axis.key) for run in group.runs}
    curves = {name: (x / axis.unit, y) for name, (x, y) in curves.items() if len(x)}
    role = "single" if len(curves) == 1 else "run"
    lines = []
    for name, (x, y) in curves.items():
        lines.append(_line(group, role, thinned(x, MAX_POINTS), thinned(y, MAX_POINTS), escape(name)))
    finished = [run.name for run in group.runs if run.progress == 1 and run.name in curves]
    averaged = [curves[name] for name in (finished if len(finished) > 1 else curves)]
    mean = mean_curve(averaged, MAX_POINTS)
    if mean is not None:
        around, border = np.append(mean.x, mean.x[::-1]), np.append(mean.high, mean.low[::-1])
        bounds = "%{customdata[0]:.5~g} to %{customdata[1]:.5~g}"
        label = f"mean of {len(averaged)}<br>{interval_name(len(averaged))}: {bounds}"
        whole = _line(group, "mean", mean.x, mean.mean, label)
        whole.customdata = np.stack([mean.low, mean.high], axis=1).astype(np.float32)
        lines += [_line(group, "band", around, border, ""), whole]
    return lines


def _line(group: Group, role: str, x: Floats, y: Floats, label: str) -> go.Scatter:
    """Returns a line in single precision, which a page shows and which takes half of the room."""
    is_marked = len(x) == 1 or (role == "single" and len(x) <= MAX_MARKED)
    return go.Scatter(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        mode="lines+markers" if is_marked else "lines",
        meta={"group": group.index, "role": role},
        hovertemplate=f"<b>%{{y:.5~g}}</b> at %{{x:.4~s}}<br>{group.letter}: {label}<extra></extra>",
    )
