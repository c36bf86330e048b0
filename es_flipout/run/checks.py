"""Range checks of configuration values; each names the option, the value and what is allowed."""

from __future__ import annotations

import math


def require(condition: bool, message: str) -> None:
    """Raises a `ValueError` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_positive(name: str, value: float | None) -> None:
    """Checks that a value is finite and above 0; None passes."""
    require(value is None or (value > 0 and math.isfinite(value)), f"{name} must be > 0, got {value}")


def require_not_negative(name: str, value: float | None) -> None:
    """Checks that a value is finite and at least 0; None passes."""
    require(value is None or (value >= 0 and math.isfinite(value)), f"{name} must be >= 0, got {value}")
