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

TENSORBOARD, REPORTERS = "logging.tensorboard", "logging.reporters"
"""A switch that became one of the names in a list."""
RENAMED = {**OPTIONS, TENSORBOARD: REPORTERS}
"""What an option that is not known any more is called now."""

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
    logging = content.get("logging")
    if isinstance(logging, Mapping) and isinstance(logging.get("tensorboard"), bool):
        if "reporters" in logging:
            raise ValueError(f"{TENSORBOARD} is now one of {REPORTERS}; give only {REPORTERS}")
        reporters = _reporters(logging["tensorboard"])
        kept = {key: value for key, value in logging.items() if key != "tensorboard"}
        content["logging"] = {**kept, "reporters": reporters}
    env = content.get("env")
    if isinstance(env, Mapping) and isinstance(env.get("id"), str):
        content["env"] = {**env, "id": ENV_IDS.get(env["id"], env["id"])}
    return content


def migrate_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of es-train with renamed options and environments."""
    migrated: list[str] = []
    for argument in _one_word_each(TENSORBOARD, arguments):
        name, equals, value = argument.partition("=")
        if name == f"--{TENSORBOARD}" and value.lower() in ("true", "false"):
            names = ", ".join(_reporters(value.lower() == "true"))
            migrated.append(f"--{REPORTERS}=[{names}]")
            continue
        option = OPTIONS.get(name.removeprefix("--"))
        name = ENV_IDS.get(name, name) if option is None else f"--{option}"
        migrated.append(name + equals + ENV_IDS.get(value, value))
    return migrated


def _reporters(tensorboard: bool) -> list[str]:
    return ["jsonl", "tensorboard"] if tensorboard else ["jsonl"]


def _one_word_each(option: str, arguments: Sequence[str]) -> list[str]:
    """Returns arguments in which an option and its value are one word, with a = between them."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == f"--{option}":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


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
