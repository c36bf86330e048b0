"""Keyword arguments of environments, as configurations have them: numbers that YAML has read as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NO_NUMBER = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)
_REMEDY = "YAML writes infinity as .inf, and what is not a number as .nan"


def check_keywords(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Checks that no list among the values holds `inf` or `nan` as text.

    Raises:
        ValueError: if one does.
    """
    for name, value in kwargs.items():
        if isinstance(value, list | tuple) and (text := next(filter(_is_text_of_number, value), None)):
            raise ValueError(f"{env_id}: {name} has the text {text!r} in {value!r}, not a number: {_REMEDY}")


def keyword_hint(kwargs: Mapping[str, Any]) -> str:
    """Returns what may be wrong with keyword arguments that were not accepted; often nothing."""
    return f" ({_REMEDY})" if any(map(_is_text_of_number, kwargs.values())) else ""


def _is_text_of_number(value: Any) -> bool:
    return isinstance(value, str) and _NO_NUMBER.fullmatch(value) is not None
