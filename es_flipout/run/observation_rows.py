"""Observations as a user's loop has them, single or a batch, as the rows that a policy takes.

They are arrays, tensors or lists of any real dtype; a dict or tuple of those if the space is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from es_flipout.described import described
from es_flipout.envs.flat_observations import one_hot
from es_flipout.policies import FlatBox
from es_flipout.policies.flat_box import Leaf, Path, entry


def observation_rows(
    observation: Any, space: spaces.Box, like: Tensor, env_id: str
) -> tuple[Tensor, bool, bool]:
    """Returns observations as a policy takes them, and whether they are a batch, and of tensors.

    Args:
        observation: of one env, or of N.
        space: of what the policy takes; see `flat_box`.
        like: a tensor on the device of the policy, of its dtype.
        env_id: whose observations they are, for messages.

    Returns:
        Rows [N, ...], like `like`.

    Raises:
        ValueError: if they are not numbers, of another shape than the space, or outside of its categories.
    """
    what = f"observations of {env_id}"
    leaves = space.leaves if isinstance(space, FlatBox) else []
    parts = [_part(observation, leaf.path, space, what) for leaf in leaves] or [observation]
    names = [f"{entry(leaf.path)} of {what}" if leaf.path else what for leaf in leaves] or [what]
    shapes = [leaf.space.shape or () for leaf in leaves] or [space.shape]
    tensors = [_tensor(part, name) for part, name in zip(parts, names, strict=True)]
    found = tuple(tensors[0].shape)
    is_batch = found != shapes[0]
    count = found[:1] if is_batch else ()
    for tensor, shape, name in zip(tensors, shapes, names, strict=True):
        if tuple(tensor.shape) != (*count, *shape) or (is_batch and not count):
            beside = f", with {found} in the first part" if is_batch and tensor is not tensors[0] else ""
            raise ValueError(
                f"{name} must have shape {shape}, or N of them in a batch, got {tuple(tensor.shape)}{beside}"
            )
    rows = [tensor if is_batch else tensor.unsqueeze(0) for tensor in tensors]
    if leaves:
        numbers = [_numbers(*each) for each in zip(rows, leaves, names, strict=True)]
        rows = [torch.cat([each.to(like) for each in numbers], dim=1)]
    return rows[0].to(like), is_batch, isinstance(parts[0], Tensor)


def _part(observation: Any, path: Path, space: spaces.Box, what: str) -> Any:
    """Returns what keys lead to."""
    part = observation
    try:
        for key in path:
            part = part[key]
    except (TypeError, KeyError, IndexError) as error:
        name = space.short_name if isinstance(space, FlatBox) else space
        raise ValueError(f"{what} are {name}, got {described(observation)} without {entry(path)}") from error
    return part


def _tensor(part: Any, name: str) -> Tensor:
    """Returns real numbers as a tensor, wherever they are."""
    if isinstance(part, Tensor) and not part.is_complex():
        return part
    try:
        array = np.array(part)  # a copy: it may be read-only
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of real numbers, got {described(part)}")
    return torch.from_numpy(array)


def _numbers(part: Tensor, leaf: Leaf, name: str) -> Tensor:
    """Returns a part of observations [N, ...] as numbers [N, F]: one per category, if it has categories."""
    numbers = part.unsqueeze(-1).flatten(1)
    if leaf.categories is None:
        return numbers
    hot = one_hot(numbers, leaf.categories)
    if hot.sum().item() != len(part) * leaf.categories.count:
        raise ValueError(f"{name} must be of {leaf.space}")
    return hot
