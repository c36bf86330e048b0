"""Observations with parts or categories as one vector of numbers, and back into their parts.

The order and the numbers are those of `gymnasium.spaces.flatten`: parts one after the other, one number per
category (one-hot). A policy that knows nothing of parts sees a `Box` of one dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

Path = tuple[str | int, ...]
_CATEGORIES = (spaces.Discrete, spaces.MultiDiscrete)
_FLAT = (spaces.Box, spaces.MultiBinary, *_CATEGORIES)


@dataclass(frozen=True)
class Categories:
    """Which of the K integers of a Discrete or MultiDiscrete space is which of its one-hot numbers.

    Attributes:
        columns: for each one-hot number, the index of its integer, int64 [C].
        values: for each one-hot number, the value of that integer for which it is 1, int64 [C].
        count: number of integers K.
    """

    columns: NDArray[np.int64]
    values: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, space: gym.Space[Any]) -> Categories | None:
        """Returns those of a space; None if it has none."""
        if not isinstance(space, _CATEGORIES):
            return None
        sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).ravel()
        starts = np.atleast_1d(space.start).ravel()
        values = [start + np.arange(size) for size, start in zip(sizes, starts, strict=True)]
        columns = np.repeat(np.arange(len(sizes)), sizes)
        return cls(columns.astype(np.int64), np.concatenate(values).astype(np.int64), len(sizes))


@dataclass(frozen=True)
class Leaf:
    """A part of an observation that has no parts itself.

    Attributes:
        path: keys that lead to it.
        space: of its values.
        dtype: of its values.
        start: index of its first number in the vector.
        stop: index after its last number.
        shape: of its numbers: as in the space, or (C,) for categories.
        categories: None if it has none.
    """

    path: Path
    space: gym.Space[Any]
    dtype: np.dtype[Any]
    start: int
    stop: int
    shape: tuple[int, ...]
    categories: Categories | None


class FlatBox(spaces.Box):
    """The space of flattened observations, which remembers the one that they are from.

    Attributes:
        original: what the environment declares: a Dict, Tuple, Discrete, MultiBinary or MultiDiscrete.
        leaves: its parts without parts, in the order of their numbers.
    """

    def __init__(self, original: gym.Space[Any]) -> None:
        """Takes a space that has a flat form; see `flat_box`."""
        flat = spaces.flatten_space(original)
        assert isinstance(flat, spaces.Box)
        super().__init__(flat.low, flat.high, dtype=flat.dtype.type)
        self.original = original
        self.leaves: list[Leaf] = []
        start = 0
        for path, space in _parts(original, ()):
            categories = Categories.of(space)
            shape = (space.shape or ()) if categories is None else categories.values.shape
            stop = start + int(np.prod(shape))
            self.leaves.append(Leaf(path, space, np.dtype(space.dtype), start, stop, shape, categories))
            start = stop

    def unflatten(self, rows: Tensor) -> Any:
        """Returns the parts of flat observations.

        Args:
            rows: [..., F], with any leading dimensions.

        Returns:
            Tensors [..., *shape], of the dtype of `rows`, in dicts and tuples as in `original`. Categories
            stay one-hot, [..., C].
        """
        leaves = iter(self.leaves)
        return _nested(self.original, lambda: _leaf_of(rows, next(leaves)))

    @property
    def short_name(self) -> str:
        """The original space without bounds and dtypes: Dict(goal, position)."""
        return short_name(self.original)


def flat_box(space: gym.Space[Any]) -> spaces.Box:
    """Returns the space of what reaches a policy: a Box as it is, of any shape, another space flattened.

    Raises:
        ValueError: if it has no flat form; the message names the part and a remedy.
    """
    if isinstance(space, spaces.Box):
        return space
    if reason := no_flat_form(space):
        raise ValueError(reason)
    return FlatBox(space)


def no_flat_form(space: gym.Space[Any]) -> str:
    """Returns what in a space has no flat form of numbers, and a remedy; nothing if it has one."""
    parts = list(_parts(space, ()))
    if not parts:
        return f"{short_name(space)} observations have no parts: there is nothing to act on"
    odd = [(path, part) for path, part in parts if not isinstance(part, _FLAT)]
    if not odd:
        return ""
    path, part = odd[0]
    kind = type(part).__name__
    if not path:
        return f"no flat form of {kind} observations: turn them into a Box in a wrapper"
    keys = {path[0]: None for path, _ in parts}
    kept = ", ".join(str(key) for key in keys if all(path[0] != key for path, _ in odd))
    how = f"by env.wrappers [{{name: FilterObservation, filter_keys: [{kept}]}}]" if kept else "in a wrapper"
    return f"no flat form of {kind}, the entry {entry(path)} of the observations: leave it out {how}"


def entry(path: Path) -> str:
    """Returns a path as Python writes it: ['arm'][0]."""
    return "".join(f"[{key!r}]" for key in path)


def short_name(space: gym.Space[Any]) -> str:
    """Returns a space without bounds and dtypes."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(map(str, space.spaces))})"
    if isinstance(space, spaces.Tuple):
        return f"Tuple({', '.join(map(short_name, space.spaces))})"
    return f"Box{space.shape}" if isinstance(space, spaces.Box) else str(space)


def _parts(space: gym.Space[Any], path: Path) -> Iterator[tuple[Path, gym.Space[Any]]]:
    """Yields the parts without parts, in the order of their numbers, each with its path."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in items:
            yield from _parts(part, (*path, key))
    else:
        yield path, space


def _nested(space: gym.Space[Any], next_leaf: Any) -> Any:
    """Returns what `next_leaf` returns, in dicts and tuples as in a space."""
    inner = partial(_nested, next_leaf=next_leaf)
    if isinstance(space, spaces.Dict):
        return {key: inner(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(inner(part) for part in space.spaces)
    return next_leaf()


def _leaf_of(rows: Tensor, leaf: Leaf) -> Tensor:
    return rows[..., leaf.start : leaf.stop].reshape(*rows.shape[:-1], *leaf.shape)
