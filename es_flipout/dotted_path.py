"""Imports a class by its dotted path, as given in a configuration."""

from __future__ import annotations

from importlib import import_module
from typing import TypeVar

from es_flipout.error_text import error_text

Base = TypeVar("Base")


def is_dotted(name: str) -> bool:
    """Returns whether a name is a path to a user-defined class: MODULE:CLASS or MODULE.CLASS."""
    return ":" in name or "." in name


def import_class(path: str, base: type[Base], option: str) -> type[Base]:
    """Imports a class.

    Args:
        path: MODULE:CLASS or MODULE.CLASS.
        base: required base class.
        option: name of the option that holds the path, for error messages.

    Raises:
        ValueError: if the module cannot be imported or has no such class.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ValueError(f"{option} {path!r} is not a path to a class: write MODULE:CLASS")
    try:
        module = import_module(module_name)
    except Exception as error:  # importing a user's module may raise anything
        raise ValueError(f"{option} {path!r}: cannot import {module_name}: {error_text(error)}") from error
    if not hasattr(module, name):
        raise ValueError(f"{option} {path!r}: the module {module_name} has no {name}")
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        wanted = ".".join([*base.__module__.split(".")[:2], base.__name__])
        raise ValueError(f"{option} {path!r} must be a subclass of {wanted}, but is {found!r}")
    return found
