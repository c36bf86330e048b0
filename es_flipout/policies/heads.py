"""Action heads: from a policy's real outputs to actions of the environment's space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from es_flipout.choices import ACTION_BOUNDS, ActionBounds

LARGEST_BOUND = 1e10
"""A bound beyond it means "none": MuJoCo, too, takes no value of its state beyond it (mjMAXVAL)."""
EXACT_INTEGERS = 2**53
"""Up to here every integer is a float64."""


class BoxActions(nn.Module):
    """Maps real outputs to actions of a one-dimensional Box of floats, float32 [N, A]."""

    low: Tensor
    high: Tensor
    middle: Tensor
    reach: Tensor

    def __init__(self, space: spaces.Box, bounds: ActionBounds) -> None:
        """Takes the space.

        Args:
            space: a Box of shape (A,).
            bounds: "rescale" squashes outputs by tanh into the range, which must be finite; "clip" uses them
                as actions and clips those out of range.

        Raises:
            ValueError: if the space is not a vector, or its range is not finite.
        """
        super().__init__()
        _check_box(space, bounds)
        low, high = (torch.from_numpy(bound) for bound in _float32_bounds(space))
        self.num_outputs = space.shape[0]
        self.bounds = bounds
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("middle", (low + high) / 2 if bounds == "rescale" else None)
        self.register_buffer("reach", (high - low) / 2 if bounds == "rescale" else None)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N, A] in range, for outputs [N, A]."""
        if self.bounds == "rescale":  # also clipped: rounding may overshoot by an ulp
            outputs = torch.addcmul(self.middle, torch.tanh(outputs), self.reach)
        return outputs.clamp(self.low, self.high)


class IntegerActions(nn.Module):
    """Maps real outputs to actions of a one-dimensional Box of integers or booleans, int64 [N, A]."""

    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Box, bounds: ActionBounds) -> None:
        """Takes the space.

        Args:
            space: a Box of shape (A,); integers beyond `EXACT_INTEGERS` are never chosen.
            bounds: "rescale" squashes outputs by tanh into the range, of which every integer gets an equal
                share; "clip" rounds them and clips those out of range.

        Raises:
            ValueError: as for `BoxActions`.
        """
        super().__init__()
        _check_box(space, bounds)
        self.num_outputs = space.shape[0]
        self.bounds = bounds
        for name, bound in (("low", space.low), ("high", space.high)):
            exact = np.clip(bound.astype(np.float64), -EXACT_INTEGERS, EXACT_INTEGERS).astype(np.int64)
            self.register_buffer(name, torch.from_numpy(exact))

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N, A] in range, for outputs [N, A]."""
        outputs = outputs.double()
        if self.bounds == "rescale":
            low, high = self.low.double(), self.high.double()
            outputs = (low + high) / 2 + torch.tanh(outputs) * ((high - low + 1) / 2)
        integers = outputs.round().clamp(-EXACT_INTEGERS, EXACT_INTEGERS).to(torch.int64)
        return integers.clamp(self.low, self.high)


def _check_box(space: spaces.Box, bounds: ActionBounds) -> None:
    """Refuses a Box that is not a vector, and a range that nothing can be squashed into."""
    if len(space.shape) != 1:
        raise ValueError(
            f"actions must be vectors, got {space}; gymnasium.wrappers.TransformAction can flatten them"
        )
    if space.shape[0] == 0:
        raise ValueError(f"there is nothing to act on: the action space is {space}")
    ends = np.abs(np.stack([space.low, space.high]).astype(np.float64))
    if np.isnan(ends).any():
        raise ValueError(f"the action range must not be NaN, got {space}")
    if bounds == "rescale" and (ends > LARGEST_BOUND).any():
        raise ValueError(
            f"the action range must be finite on both sides, within ±{LARGEST_BOUND:.0e}, to squash actions "
            f"into it, got {space}; set policy.action_bounds to clip, or give the environment a finite range"
        )


def _float32_bounds(space: spaces.Box) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the bounds of a Box in float32, rounded inwards: an action must not leave it by an ulp."""
    infinity = np.float32(np.inf)
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return (
        np.where(low < space.low, np.nextafter(low, infinity), low),
        np.where(high > space.high, np.nextafter(high, -infinity), high),
    )


class DiscreteActions(nn.Module):
    """Maps n outputs to an action of a Discrete space, that of the highest output, int64 [N]."""

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = int(space.n)
        self.start = int(space.start)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N] for outputs [N, n]; the first of equal outputs wins."""
        return outputs.argmax(dim=-1) + self.start


class MultiDiscreteActions(nn.Module):
    """Maps groups of outputs to an action of a MultiDiscrete space, the highest of each, int64 [N, A]."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__()
        if space.nvec.ndim != 1:
            raise ValueError(
                f"actions must be vectors, got {space}; gymnasium.wrappers.TransformAction can flatten them"
            )
        self.sizes: list[int] = space.nvec.tolist()
        self.starts: list[int] = space.start.tolist()
        self.num_outputs = sum(self.sizes)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N, A] for outputs [N, num_outputs]."""
        groups = outputs.split_with_sizes(self.sizes, dim=-1)
        chosen = [group.argmax(dim=-1) + start for group, start in zip(groups, self.starts, strict=True)]
        return torch.stack(chosen, dim=-1)


ActionHead = BoxActions | IntegerActions | DiscreteActions | MultiDiscreteActions
"""A module from `num_outputs` real outputs to actions of a space."""


def make_action_head(space: gym.Space[Any], bounds: ActionBounds = ACTION_BOUNDS) -> ActionHead:
    """Returns the head for actions of `space`.

    Raises:
        ValueError: if the space is not supported; the message names a remedy.
    """
    if isinstance(space, spaces.Box):
        return BoxActions(space, bounds) if space.dtype.kind == "f" else IntegerActions(space, bounds)
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(space)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space)
    raise ValueError(
        f"{type(space).__name__} actions are not supported (Box, Discrete and MultiDiscrete are): "
        "gymnasium.wrappers.TransformAction can convert one of those to the environment's actions"
    )
