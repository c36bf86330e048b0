"""Reads what earlier versions wrote: configurations, metrics and checkpoints, in the names of today.

Nothing else knows an old name. Each function returns content of the current version as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = 4
"""Version of the checkpoint's layout."""
OLD_FORMAT = 3
"""Version before it, in which three metrics had other names."""

OPTIONS = {"env.num_slots": "env.num_envs"}
"""Options of a configuration that were renamed, by dotted name."""

ENV_IDS = {
    f"scripts.{name}": f"examples.{name}"
    for name in ("catch:Catch-v0", "point_mass:PointMass-v0", "recall:Recall-v0")
}
"""Environments whose module moved."""

METRICS = {
    "centre_score": "score",
    "centre_score_std": "score_std",
    "centre_episode_length": "score_episode_length",
}
"""Fields of a generation's metrics that were renamed."""


def migrate_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration, as read from YAML, with renamed options and environments.

    Raises:
        ValueError: if it has an option under both its names.
    """
    content = dict(content)
    for old, new in OPTIONS.items():
        section, _, old_key = old.partition(".")
        new_key = new.partition(".")[2]
        values = content.get(section)
        if not isinstance(values, Mapping) or old_key not in values:
            continue
        if new_key in values:
            raise ValueError(f"{old} is the old name of {new}; give only {new}")
        content[section] = {new_key if key == old_key else key: value for key, value in values.items()}
    env = content.get("env")
    if isinstance(env, Mapping) and isinstance(env.get("id"), str):
        content["env"] = {**env, "id": ENV_IDS.get(env["id"], env["id"])}
    return content


def migrate_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of es-train with renamed options and environments."""
    migrated = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = OPTIONS.get(name.removeprefix("--"))
        name = ENV_IDS.get(name, name) if option is None else f"--{option}"
        migrated.append(name + equals + ENV_IDS.get(value, value))
    return migrated


def migrate_metrics(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a generation, as read from a line of metrics.jsonl, with renamed fields."""
    renamed = {METRICS.get(name, name): value for name, value in figures.items()}
    if "live_share" in renamed:  # which was not counted among the timing
        renamed["timing"] = {**renamed.get("timing", {}), "live_share": renamed.pop("live_share")}
    return renamed


def migrate_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint of the previous or the current format as one of the current format."""
    migrated = {**state, "format": FORMAT}
    if "unscored" in state:  # a generation whose center was still being scored
        unscored = state["unscored"]
        migrated["unscored"] = {**unscored, "metrics": migrate_metrics(unscored["metrics"])}
    return migrated
