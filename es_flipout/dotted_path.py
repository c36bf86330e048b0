"""From a dotted path in a configuration to the class that it names."""

from __future__ import annotations

from importlib import import_module
from typing import TypeVar

Base = TypeVar("Base")


def is_dotted(name: str) -> bool:
    """Returns whether a name is a path to a class of the user's own: MODULE:CLASS or MODULE.CLASS."""
    return ":" in name or "." in name


def import_class(path: str, base: type[Base], option: str) -> type[Base]:
    """Imports a class.

    Args:
        path: MODULE:CLASS, or the same with a dot.
        base: what it must be a subclass of.
        option: the option that holds the path, for the messages.

    Raises:
        ValueError: if the module cannot be imported, or holds no such class.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ValueError(f"{option} {path!r} is no path to a class: write MODULE:CLASS")
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ValueError(
            f"{option} {path!r}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"{option} {path!r}: the module {module_name} has no {name}")
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        wanted = ".".join([*base.__module__.split(".")[:2], base.__name__])
        raise ValueError(f"{option} {path!r} must be a subclass of {wanted}, but is {found!r}")
    return found
