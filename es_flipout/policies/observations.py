"""Checks of observation spaces, with remedies for those that a policy does not support."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces

from es_flipout.normalization import ObservationNormalizer


def box(space: gym.Space[Any]) -> spaces.Box:
    """Returns the observation space if it is a Box, of any shape.

    Raises:
        ValueError: if it is not; the message names a remedy.
    """
    if isinstance(space, spaces.Box):
        return space
    raise ValueError(_refusal(f"{type(space).__name__} observations"))


def vector_box(space: gym.Space[Any]) -> spaces.Box:
    """Returns the observation space if it is a Box of vectors.

    Raises:
        ValueError: if it is not; the message names a remedy.
    """
    shape = box(space).shape
    if len(shape) == 1:
        return box(space)
    images = ", or set policy.kind to cnn for images" if len(shape) == 3 else ""
    raise ValueError(_refusal(f"Box observations of shape {shape}", images))


def _refusal(kind: str, more: str = "") -> str:
    return (
        f"{kind} are not supported, a policy needs vectors (a Box of one dimension): "
        f"flatten them by env.wrappers [FlattenObservation] (gymnasium.wrappers.FlattenObservation){more}"
    )


def make_normalizer(space: spaces.Box, normalize: bool, clip: float) -> ObservationNormalizer | None:
    """Returns the normalizer of vector observations, or None if `normalize` is false."""
    return ObservationNormalizer(space.shape[0], clip) if normalize else None
