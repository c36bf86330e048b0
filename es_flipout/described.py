"""What a value is, in one line: for messages about what a user's code has returned."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

_MOST_CHARACTERS = 40  # of a constant
_MOST_VALUES = 3  # that are described one by one


def described(value: Any) -> str:
    """Returns what a value is: short and on one line, whatever it is."""
    if isinstance(value, tuple | list):
        each = f" ({', '.join(map(_described, value))})" if 0 < len(value) <= _MOST_VALUES else ""
        return _described(value) + each
    return _described(value)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(value.shape)} and dtype {dtype}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} value{'' if len(value) == 1 else 's'}"
    if value is None or isinstance(value, str | Number):
        text = repr(value)
        long = f"{text[:_MOST_CHARACTERS]}... ({type(value).__name__})"
        return text if len(text) <= _MOST_CHARACTERS else long
    return f"an object of type {type(value).__qualname__}"
