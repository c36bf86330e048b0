"""YAML in which 1e-3 is a number, and 12:30 and 2024-01-01 are text, as in YAML 1.2, unlike PyYAML's own.

Everything that reads YAML reads it here: files, and keyword arguments on a command line. What is written is
read back with the same types: a run directory called 1e5 is written in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml
from typing_extensions import override


class _Loader(yaml.SafeLoader):
    """Reads plain data, and refuses a key that appears twice in one mapping."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor` may be overridden by the keys beside it
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise ValueError(f"key {key!r} in line {line} is not a name")
            if key in seen:
                raise ValueError(f"key {key!r} appears twice (the second time in line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes plain data."""


_RESOLVED_HERE = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
_DIGITS = "-+.0123456789"
_INT = re.compile(r"^[-+]?(0b[01_]+|0[0-7_]*|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"^[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_HERE]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list(_DIGITS))
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list(_DIGITS))


def load(text: str) -> Any:
    """Reads plain data.

    Raises:
        ValueError: if it is not YAML, or repeats a key; the message is one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def load_mapping(text: str) -> dict[str, Any]:
    """Reads keys and values, such as keyword arguments.

    Raises:
        ValueError: if it is anything else, or a key is not text.
    """
    content = load(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"must be keys and values in YAML, such as {{frame_skip: 4}}, got {text!r}")
    return content


def dump(content: Mapping[str, Any]) -> str:
    """Returns plain data as YAML, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
