"""Reads the configuration that a run has stored, for whatever uses the run.

A stored configuration is whole and has been checked, so that this needs no parser; es-train, which takes
overrides, reads it as it reads every other file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from es_flipout.error_text import error_text
from es_flipout.run import yaml_text
from es_flipout.run.config import Config
from es_flipout.run.errors import RunError
from es_flipout.run.migration import migrate_config

Section = TypeVar("Section")


def read_stored_config(path: Path) -> Config:
    """Reads the `config.yaml` of a run of this version or of an earlier one.

    Raises:
        RunError: if it cannot be read, or is not a configuration.
    """
    try:
        return _section(Config, migrate_config(yaml_text.load_mapping(path.read_text())))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is not the configuration of a run: {error_text(error)}") from error


def _section(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """Builds a section of a configuration, and those in it."""
    kinds = get_type_hints(kind)
    return kind(
        **{
            name: _section(kinds[name], value) if dataclasses.is_dataclass(kinds.get(name)) else value
            for name, value in values.items()
        }
    )
