"""The page: one HTML file with its style, its script, Plotly, the figures and the films in it.

A content security policy in the page keeps it from loading anything, whatever is in the names of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import groupby
from typing import Any

import jinja2
import plotly
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import es_flipout
from es_flipout.report.curves import CONFIDENCE, MIN_FOR_BOOTSTRAP
from es_flipout.report.groups import MISSING, Group, differences
from es_flipout.report.panels import MAX_POINTS, Panel, curve_panels, update_panels
from es_flipout.report.returns import Filmed, Played, strip_figure
from es_flipout.report.runs import Run, start_time
from es_flipout.run import yaml_text

PARTS = files("es_flipout.report") / "parts"
"""Template, style and script."""
NUM_COLORS = 6
"""Groups that have a color of their own; further ones have the same colors, dashed."""
COLUMNS = {
    "processor": "processor",
    "cores": "cores",
    "memory_gib": "memory (GiB)",
    "gpu": "GPU",
    "ranks": "ranks",
    "python": "Python",
    "torch": "torch",
    "mujoco": "mujoco",
    "mujoco-warp": "mujoco-warp",
    "warp-lang": "warp",
    "gymnasium": "gymnasium",
    "numpy": "numpy",
    "es_flipout": "es_flipout",
}
"""What a start of a run records, and how the page calls it."""


@dataclass(frozen=True)
class Task:
    """The part of the page about one environment.

    Attributes:
        env_id: the environment.
        groups: of runs in it.
        curves: panels of score and fitness.
        updates: panels of what an update looked like.
        played: episodes of its policies.
        returns: figure of their returns; see `strip_figure`.
        films: of its policies, by the index of the group.
        failures: for each reason: its group, who failed, how often.
    """

    env_id: str
    groups: Sequence[Group]
    curves: Sequence[Panel]
    updates: Sequence[Panel]
    played: Sequence[Played]
    returns: Mapping[str, Any]
    films: Mapping[int, Filmed]
    failures: Sequence[tuple[Group, str, str, int]]


def render(
    groups: Sequence[Group], played: Sequence[Played], films: Mapping[int, Filmed], first_seed: int
) -> str:
    """Returns the page.

    Args:
        groups: all runs.
        played: episodes of their policies; empty if none were wanted.
        films: by the index of the group; empty if none were wanted.
        first_seed: reset seed of the first of those episodes.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"figure": figure, "duration": duration, "moment": moment}
    tasks = _tasks(groups, played, films)
    runs = [run for group in groups for run in group.runs]
    return environment.from_string(_part("page.html")).render(
        title=", ".join(dict.fromkeys(group.env_id for group in groups)),
        made=datetime.now(UTC),
        groups=groups,
        runs=[(group, run) for group in groups for run in group.runs],
        tasks=tasks,
        env_steps=int(sum(run.total("env_steps") for run in runs)),
        seconds=sum(run.total("timing.seconds") for run in runs),
        differences=differences(groups),
        configurations={group.index: _configuration(group.runs[0]) for group in groups},
        machines=_machines(groups),
        columns=COLUMNS,
        missing=MISSING,
        first_seed=first_seed,
        confidence=f"{CONFIDENCE:.0%}",
        min_for_bootstrap=MIN_FOR_BOOTSTRAP,
        max_points=MAX_POINTS,
        num_colors=NUM_COLORS,
        version=es_flipout.__version__,
        plotly_version=plotly.__version__,
        style=Markup(_part("page.css")),
        script=Markup(_part("page.js")),
        plotly=Markup(get_plotlyjs()),
    )


def figure(value: float | None) -> str:
    """Returns a number with five significant digits, or all before the point."""
    if value is None or value != value:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.5g}"


def duration(seconds: float) -> str:
    """Returns h:mm:ss, or days and hours."""
    time = timedelta(seconds=round(seconds))
    return f"{time.days} d {time.seconds // 3600} h" if time.days else str(time)


def moment(time: datetime) -> str:
    """Returns a time to the minute, in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _configuration(run: Run) -> str:
    """Returns the configuration of a run in YAML, apart from where it is stored."""
    return yaml_text.dump({name: value for name, value in asdict(run.config).items() if name != "out"})


def _tasks(groups: Sequence[Group], played: Sequence[Played], films: Mapping[int, Filmed]) -> list[Task]:
    found = []
    for env_id in dict.fromkeys(group.env_id for group in groups):
        own = [group for group in groups if group.env_id == env_id]
        names = {run.name for group in own for run in group.runs}
        episodes = [each for each in played if each.run.name in names]
        found.append(
            Task(
                env_id=env_id,
                groups=own,
                curves=curve_panels(own),
                updates=update_panels(own),
                played=episodes,
                returns=strip_figure(episodes, own),
                films={group.index: films[group.index] for group in own if group.index in films},
                failures=list(_failures(own)),
            )
        )
    return found


def _failures(groups: Sequence[Group]) -> list[tuple[Group, str, str, int]]:
    rows = []
    for group in groups:
        for key, who in (("failures", "members"), ("score_failures", "score")):
            counts: dict[str, int] = {}
            for run in group.runs:
                for reason, count in run.failures(key).items():
                    counts[reason] = counts.get(reason, 0) + count
            rows += [(group, who, reason, count) for reason, count in counts.items()]
    return rows


def _machines(groups: Sequence[Group]) -> list[tuple[Group, Run, str, Mapping[str, Any]]]:
    """Returns where runs started: a row for each stretch of starts on the same machine and versions.

    A row is the group, the run, when it started, and the machine, which is empty if it is not recorded.
    """
    rows: list[tuple[Group, Run, str, Mapping[str, Any]]] = []
    for group in groups:
        for run in group.runs:
            if not run.starts:
                rows.append((group, run, "not recorded", {}))
            for machine, starts in groupby(run.starts, lambda start: {**start, "time": None}):
                times = [moment(start_time(start)) for start in starts]
                when = times[0] if len(times) == 1 else f"{len(times)} starts, {times[0]} to {times[-1]}"
                rows.append((group, run, when, machine))
    return rows
