"""Checks of single settings: a number of any type in, a plain one out, or an error that names the setting."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor


def number(name: str, value: Any, *, positive: bool = False) -> float:
    """Returns a setting as a float: finite, and >= 0 or > 0."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and 0 <= value < math.inf) or (positive and value == 0):
        raise ValueError(f"{name} must be {'>' if positive else '>='} 0, got {shown(value)}")
    return float(value)


def integer(name: str, value: Any, *, positive: bool = False) -> int:
    """Returns a setting as an int, >= 0 or > 0."""
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool | Tensor | np.ndarray)
    if not is_integer or operator.index(value) < int(positive):
        raise ValueError(f"{name} must be an integer {'>' if positive else '>='} 0, got {shown(value)}")
    return operator.index(value)


def shown(value: Any) -> str:
    """Returns a value for an error."""
    return str(value) if isinstance(value, Real) else f"{value!r:.80}"
