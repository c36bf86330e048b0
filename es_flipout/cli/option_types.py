"""Types of argparse options: what parses the text of an option, and refuses it in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from es_flipout.run import yaml_text


def keyword_arguments(text: str) -> dict[str, Any]:
    """Reads the value of an option that takes keyword arguments; the `type` of an argparse option.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    try:
        return yaml_text.load_mapping(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number_type(
    parse: Callable[[str], float], rule: str, holds: Callable[[float], bool]
) -> Callable[[str], float]:
    """Returns what parses a number, and refuses one that breaks a rule."""

    def checked(text: str) -> float:
        try:
            value = parse(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return value

    return checked


COUNT = number_type(int, "an integer >= 1", lambda value: value >= 1)
SEED = number_type(int, "an integer >= 0", lambda value: value >= 0)
AMOUNT = number_type(float, "a number > 0", lambda value: value > 0)
