"""How long episodes are: all as long, or as long as those of Humanoid's members that fall.

The lengths of Humanoid were recorded by `python -m benchmarks.scaling.record`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

RECORDED = Path(__file__).resolve().parents[1] / "results" / "scaling_lengths.json"
"""Sorted lengths of one episode per member, by name of the population."""
CONSTANT = "constant"
"""Name of the distribution in which every episode is one step long, times the scale."""


@cache
def recorded(name: str) -> Ints:
    """Returns the sorted lengths of a distribution, int64 [N].

    Raises:
        ValueError: if there is none of this name.
    """
    if name == CONSTANT:
        return np.ones(1, np.int64)
    populations = json.loads(RECORDED.read_text())["populations"]
    if name not in populations:
        raise ValueError(f"lengths must be one of {', '.join([CONSTANT, *populations])}, got {name}")
    return np.array(populations[name]["lengths"], np.int64)


def drawn(name: str, generator: np.random.Generator, scale: float = 1.0, size: int | None = None) -> Ints:
    """Draws lengths, int64 [size], or one: recorded lengths times the scale, rounded, at least 1."""
    found = generator.choice(recorded(name), size)
    return np.maximum(np.rint(found * scale), 1).astype(np.int64)
