"""Configuration files: YAML with known keys, none of them twice; keys of earlier versions are renamed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from es_flipout.run import yaml_text
from es_flipout.run.config import Config
from es_flipout.run.migration import RENAMED, migrate_config


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is one line."""


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads a configuration file, of this version or of an earlier one, and checks its keys.

    Raises:
        UsageError: if it cannot be read, or a key is unknown, repeated or null.
    """
    content = read_yaml(path.read_text, path)
    if not isinstance(content, dict):
        raise UsageError(f"config file {path} must contain keys and values, got {content!r}")
    try:
        content = migrate_config(content)
    except ValueError as error:
        raise UsageError(f"config file {path}: {error}") from error
    check_keys(content, Config, path)
    return content


def read_yaml(read: Callable[[], str], source: object) -> object:
    """Returns the content of a YAML text.

    Args:
        read: returns the text.
        source: what the text is called in messages.

    Raises:
        UsageError: if it cannot be read, is not YAML, or repeats a key.
    """
    try:
        return yaml_text.load(read())
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {source} is not a text in UTF-8: {error.reason}") from error
    except ValueError as error:
        raise UsageError(f"config file {source}: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read config file {source}: {error.strerror}") from error


def check_keys(content: object, section: type, source: object, prefix: str = "") -> None:
    """Checks that all keys of a section exist, and that none is null unless it may be.

    Args:
        content: of the section.
        section: its dataclass.
        source: what the file is called in messages.
        prefix: the section's dotted name and a dot; empty for the whole configuration.

    Raises:
        UsageError: for the first key that is wrong.
    """
    if not isinstance(content, dict):
        name = prefix.rstrip(".")
        raise UsageError(f"{name} in config file {source} must contain keys and values, got {content!r}")
    fields, inner = get_type_hints(section), sections(section)
    for key, value in content.items():
        if key not in fields:
            advice = suggestion(f"{prefix}{key}", [prefix + field for field in fields])
            raise UsageError(f"unknown key {prefix}{key} in {source}{advice}")
        if value is None and type(None) not in get_args(fields[key]):
            raise UsageError(f"{prefix}{key} in {source} must not be null")
        if key in inner:
            check_keys(value, inner[key], source, f"{prefix}{key}.")


def sections(section: type) -> dict[str, type]:
    """Returns the sections that a section contains, by name."""
    return {
        name: kind
        for name, kind in get_type_hints(section).items()
        if dataclasses.is_dataclass(kind) and isinstance(kind, type)
    }


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """Returns the end of a message about an unknown option: its new name, a similar one, or all of them."""
    if name in RENAMED:
        return f"; it is called {RENAMED[name]} now"
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f" (allowed: {', '.join(allowed)})"
