"""Options of a program, as its JSON document has them."""

from __future__ import annotations

import argparse
from typing import Any


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all options but the output files: numbers, lists and None as they are, others as text."""
    return {
        name: value if value is None or isinstance(value, int | float | list) else str(value)
        for name, value in vars(options).items()
        if name not in ("json", "plot")
    }
