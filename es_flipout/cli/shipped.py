"""The shipped configurations: where they are, and which file `--config NAME` means."""

from __future__ import annotations

from pathlib import Path


def shipped_config_dir() -> Path:
    """Returns the folder of the shipped configurations: in the wheel, or in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """Returns the names of the shipped configurations, sorted."""
    return sorted(file.name for file in shipped_config_dir().glob("*.yaml"))


def find_config(name: str) -> Path:
    """Returns the configuration file that `--config NAME` means: a path, or a shipped name.

    Raises:
        ValueError: if neither exists; the message lists the shipped names.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_config_dir()
    for candidate in (shipped / name, shipped / f"{name}.yaml"):
        if path.name == name and candidate.is_file():
            return candidate
    names = ", ".join(shipped_names())
    raise ValueError(f"config file {name!r} does not exist; the shipped configs are {names}")
