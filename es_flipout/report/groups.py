"""Groups of runs that repeat one training: nothing that changes it differs but the seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from es_flipout.report.runs import Run

NOT_COMPARED = ("seed", "threads", "device", "rank_timeout", "logging", "env.num_envs")
"""Settings, and sections, that do not change what is trained, besides its random numbers."""
BUDGET = ("generations", "max_env_steps")
"""When a run ends. Only with a schedule does that change what is trained."""
MAX_NAMED = 3
"""Settings that the label of a group names at most."""
MISSING = "–"


@dataclass(frozen=True)
class Group:
    """Runs that repeat one training.

    Attributes:
        index: position among the groups of the report, which decides the color.
        label: what tells it from the other groups, after its letter.
        runs: its runs, in the order in which they were given.
    """

    index: int
    label: str
    runs: Sequence[Run]

    @property
    def letter(self) -> str:
        """A short name: A to Z, then A1 and so on."""
        turn, at = divmod(self.index, len(ascii_uppercase))
        return ascii_uppercase[at] + (str(turn) if turn else "")

    @property
    def env_id(self) -> str:
        """The environment."""
        return self.runs[0].config.env.id

    @property
    def best_run(self) -> Run:
        """The run with the highest score; the first one if there is no score."""
        return max(self.runs, key=lambda run: run.best["score"] if run.best else float("-inf"))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups that runs form, in the order of their first runs."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr(_compared(run)), []).append(run)
    found = list(members.values())
    several_envs = len({run.config.env.id for run in runs}) > 1
    labels = []
    for group in found:
        env_id = group[0].config.env.id
        rivals = [other[0] for other in found if other[0].config.env.id == env_id]
        labels.append(_label(group, rivals, env_id if several_envs or len(rivals) == 1 else ""))
    return [
        Group(index, label, group) for index, (label, group) in enumerate(zip(labels, found, strict=True))
    ]


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Returns the settings that are not the same in all runs: the values in each group, by dotted name."""
    runs = [run for group in groups for run in group.runs]
    return {name: [", ".join(_values(group.runs, name)) for group in groups] for name in _differing(runs)}


def _compared(run: Run) -> list[tuple[str, Any]]:
    """Returns the settings that a run shares with all runs of its group."""
    schedules = (run.config.es.sigma_schedule.kind, run.config.optimizer.lr_schedule.kind)
    left_out = NOT_COMPARED + (BUDGET if set(schedules) == {"constant"} else ())
    return [
        (name, value)
        for name, value in sorted(run.settings.items())
        if name not in left_out and name.partition(".")[0] not in left_out
    ]


def _label(group: Sequence[Run], rivals: Sequence[Run], env_id: str) -> str:
    """Returns what tells a group from its rivals of the same environment, given by their first runs."""
    compared = {name for run in rivals for name, _ in _compared(run)}
    names = [name for name in _differing(rivals) if name in compared]
    if len(names) > MAX_NAMED:
        others = len(group) - 1
        parts = [group[0].name + (f" and {others} more" if others else "")]
    else:
        parts = [f"{_short(name, names)} {_text(group[0], name)}" for name in names]
    return ", ".join(filter(None, [env_id, *parts]))


def _differing(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len(set(_values(runs, name))) > 1]


def _values(runs: Iterable[Run], name: str) -> list[str]:
    """Returns the different values of a setting, as text."""
    return list(dict.fromkeys(_text(run, name) for run in runs))


def _text(run: Run, name: str) -> str:
    if name not in run.settings:
        return MISSING
    value = run.settings[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(name: str, names: Sequence[str]) -> str:
    """Returns the last part of a dotted name, or all of it if another one ends alike."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
