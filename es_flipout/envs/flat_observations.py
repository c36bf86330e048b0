"""What environments observe, of one env or of N, as the space that reaches a policy has it: a Box.

Observations with parts or categories are checked part by part and flattened; see `FlatBox`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.described import described
from es_flipout.envs import values
from es_flipout.envs.array_kinds import shared_tensor
from es_flipout.envs.values import EnvFault
from es_flipout.policies import FlatBox
from es_flipout.policies.flat_box import Categories, Leaf, entry


def observation_array(value: Any, space: spaces.Box, method: str) -> NDArray[Any]:
    """Returns an observation of one env as an array of a space's shape and dtype, perhaps the one that came.

    Args:
        value: what `method` returned.
        space: see `flat_box`.
        method: reset or step.

    Raises:
        EnvFault: if it is anything else than the space declares.
    """
    if not isinstance(space, FlatBox):
        return values.observation_array(value, space.shape, space.dtype, method)
    flat = np.zeros(space.shape, space.dtype)
    for leaf in space.leaves:
        part, shape = _part(value, leaf, method), leaf.space.shape or ()
        if not (type(part) is np.ndarray and part.dtype is leaf.dtype and part.shape == shape):
            part = values.observation_array(part, shape, leaf.dtype, method, _name(leaf))
        numbers = part.reshape(-1)
        if leaf.categories is not None:
            hot = numbers[leaf.categories.columns] == leaf.categories.values
            if np.count_nonzero(hot) != leaf.categories.count:
                raise _outside(part, leaf, method)
            numbers = hot
        flat[leaf.start : leaf.stop] = numbers
    return flat


def observation_tensor(
    value: Any, space: spaces.Box, count: int, method: str, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns the observations of N envs as a new tensor [N, ...], on a device and of a floating dtype.

    Args:
        value: what `method` returned; each part is an array, a tensor, or lists of numbers, with N first.
        space: of one env, see `flat_box`.
        count: number of envs N.
        method: reset or step.
        device: where the tensor is to be.
        dtype: of which dtype.

    Raises:
        EnvFault: if they are anything else than the space declares.
    """
    if not isinstance(space, FlatBox):
        shape, its_dtype = (count, *space.shape), np.dtype(space.dtype)
        return values.observation_tensor(value, shape, its_dtype, method, device=device, dtype=dtype)
    parts: list[Tensor] = []
    for leaf in space.leaves:
        part, name = _part(value, leaf, method), _name(leaf)
        shape, its_dtype = (count, *(leaf.space.shape or ())), leaf.dtype
        is_count = leaf.categories is not None  # of which float32 could not hold every integer
        numbers = values.observation_tensor(
            part, shape, its_dtype, method, name, device=device, dtype=torch.float64 if is_count else dtype
        ).reshape(count, -1)
        if leaf.categories is not None:
            hot = one_hot(numbers, leaf.categories)
            if hot.sum().item() != count * leaf.categories.count:
                raise _outside(part, leaf, method)
            numbers = hot.to(dtype)
        parts.append(numbers)
    return torch.cat(parts, dim=1)


def first_array(value: Any, space: spaces.Box) -> Any:
    """Returns the observations, or their first part: an array of the library that they are from."""
    return _part(value, space.leaves[0], "reset") if isinstance(space, FlatBox) else value


def one_hot(numbers: Tensor, categories: Categories) -> Tensor:
    """Returns bools [N, C] for integers [N, K]."""
    columns, wanted = (
        torch.from_numpy(each).to(numbers.device) for each in (categories.columns, categories.values)
    )
    return numbers[:, columns] == wanted


def _part(value: Any, leaf: Leaf, method: str) -> Any:
    """Returns a part of an observation.

    Raises:
        EnvFault: if there is none.
    """
    part = value
    for depth, key in enumerate(leaf.path):
        holds = (
            isinstance(part, Mapping) if isinstance(key, str) else isinstance(part, Mapping | tuple | list)
        )
        try:
            if not holds:
                raise KeyError(key)
            part = part[key]
        except (KeyError, IndexError) as error:
            where = f"an observation{entry(leaf.path[:depth])}"
            raise EnvFault(
                f"{method} returned {where} without the entry [{key!r}] that observation_space declares: "
                f"{described(part)}"
            ) from error
    return part


def _name(leaf: Leaf) -> str:
    return f"an observation{entry(leaf.path)}"


def _outside(value: Any, leaf: Leaf, method: str) -> EnvFault:
    """Returns what to raise for a category that does not exist."""
    shared = shared_tensor(value)
    number = value if shared is None else shared.cpu().numpy()
    text = described(number.item() if isinstance(number, np.ndarray) and number.size == 1 else number)
    return EnvFault(f"{method} returned {_name(leaf)} outside of {leaf.space}, which is declared: {text}")
