"""YAML in which 1e-3 is a number, as in YAML 1.2 and jsonargparse. PyYAML alone takes it for a string.

What is written is therefore read back with the same types: a run directory called 1e5 is written in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Reads plain data."""


class _Dumper(yaml.SafeDumper):
    """Writes plain data."""


for _each in (Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def dump(content: Mapping[str, Any]) -> str:
    """Returns plain data as YAML, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
