"""Text from YAML stays text: jsonargparse reads text among values of type `Any` as YAML once more.

That is right for `--env.kwargs.version 1.0`, which is read for the first time then, and wrong for a quoted
'1.0' in a file. Text that would turn into something else is marked for as long as jsonargparse has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse.typing import register_type

from es_flipout.run import yaml_text


class _Quoted(str):
    """Text that has been read from YAML, which may have been in quotes."""

    __slots__ = ()


register_type(_Quoted, serializer=lambda text: text)  # jsonargparse leaves values of registered types alone


def load_marked(text: str) -> Any:
    """Reads YAML for jsonargparse.

    Raises:
        ValueError: as `yaml_text.load`.
    """
    content = yaml_text.load(text)
    return _Quoted(content) if isinstance(content, str) else _map_text(content, _marked)


def dump_marked(content: Mapping[str, Any]) -> str:
    """Writes YAML for jsonargparse."""
    return yaml_text.dump(_map_text(content, str))


def unmarked(value: Any) -> Any:
    """Returns a value from jsonargparse, such as a section of a configuration, with plain text in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: unmarked(getattr(value, name)) for name in names})
    return _map_text(value, str)


def _marked(text: str) -> str:
    try:
        is_text = isinstance(yaml_text.load(text), str)
    except ValueError:
        is_text = True
    return text if is_text else _Quoted(text)


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_text(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_map_text(each, change) for each in value]
    return change(value) if isinstance(value, str) else value
