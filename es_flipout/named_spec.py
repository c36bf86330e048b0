"""A class that a configuration names, with keyword arguments: `NAME`, or `{name: NAME, size: 4}`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

NamedSpec = str | Mapping[str, Any]
"""A name, which may be MODULE:CLASS, or a mapping of `name` and keyword arguments."""


def spec_name(spec: NamedSpec, kind: str, example: str) -> str:
    """Returns which class is meant.

    Args:
        spec: what a configuration says.
        kind: what the class is, for messages.
        example: of a mapping, for messages.

    Raises:
        ValueError: if that cannot be told, or a key is not text.
    """
    if isinstance(spec, str) and re.fullmatch(r"[\w.]+(:[\w.]+)?", spec):
        return spec
    if not isinstance(spec, Mapping):
        raise ValueError(f"a {kind} must be a name or a mapping like {example}, got {spec!r:.40}")
    for key in spec:
        if not isinstance(key, str):
            raise ValueError(f"a {kind}'s keyword arguments have names, got {key!r} in {dict(spec)}")
    name = spec.get("name")
    if not isinstance(name, str):
        raise ValueError(f"{kind} {dict(spec)} needs a name, as in {example}")
    return name


def spec_kwargs(spec: NamedSpec) -> dict[str, Any]:
    """Returns the keyword arguments."""
    return {} if isinstance(spec, str) else {key: spec[key] for key in spec if key != "name"}


def check_kwargs(kind: str, name: str, call: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Checks that something can be called with one positional argument and keyword arguments.

    Args:
        kind: what it is, for messages.
        name: as the user gave it.
        call: the class, or a function.
        kwargs: keyword arguments.

    Returns:
        The annotation of each parameter; none if that cannot be told.

    Raises:
        ValueError: if it lacks a keyword argument, or takes no such one.
    """
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # written in C, or nothing that can be called
        return {}
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        taken = ", ".join(list(map(_shown, signature.parameters.values()))[1:]) or "no arguments"
        raise ValueError(f"{kind} {name}: {error}; it takes {taken}, as in {{name: {name}, ...}}") from error
    return {key: str(each.annotation) for key, each in signature.parameters.items()}


def _shown(parameter: inspect.Parameter) -> str:
    """Returns a parameter as a signature shows it, without its annotation."""
    return str(parameter.replace(annotation=inspect.Parameter.empty))
