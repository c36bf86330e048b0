"""Observation stacking: a policy that acts on the last k observations, whatever plays it.

At step t the policy inside sees [o_(t-k+1), ..., o_t], oldest first; before the start of the episode stands
its first observation. The past observations are a recurrent state, so that stacking needs nothing of the
environment or the player.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.normalization import ObservationNormalizer, RunningStatistics
from es_flipout.parameters import leading_parameter
from es_flipout.policies.observations import box


def stacked_space(space: gym.Space[Any], num_observations: int, axis: int = 0) -> spaces.Box:
    """Returns the space of observations stacked along one of their axes.

    Args:
        space: of a single observation, a Box.
        num_observations: how many are stacked.
        axis: along which they are concatenated: 0 for vectors, that of the channels for images.

    Raises:
        ValueError: if the space is no Box, or has no such axis.
    """
    single = box(space)
    if not 0 <= axis < len(single.shape):
        raise ValueError(f"observations of shape {single.shape} cannot be stacked along axis {axis}")
    low, high = (np.concatenate([bound] * num_observations, axis) for bound in (single.low, single.high))
    return spaces.Box(low, high, dtype=single.dtype.type)


class StackedPolicy(nn.Module):
    """A policy around another one, which acts on the last k observations; recurrent.

    Attributes:
        policy: the policy inside, for observations of `stacked_space`. It may be recurrent, too.
        row_wise: whether the policy inside is.
    """

    def __init__(
        self, policy: nn.Module, observation_space: gym.Space[Any], num_observations: int, *, axis: int = 0
    ) -> None:
        """Wraps a policy.

        Args:
            policy: made for `stacked_space(observation_space, num_observations, axis)`.
            observation_space: of a single observation, a Box.
            num_observations: k, at least 2.
            axis: along which observations are concatenated.

        Raises:
            ValueError: if there is nothing to stack, or the space is no Box with such an axis.
        """
        super().__init__()
        if num_observations < 2:
            raise ValueError(f"stacking needs at least 2 observations, got {num_observations}")
        past = stacked_space(observation_space, num_observations - 1, axis)
        self.policy = policy
        self.row_wise = bool(getattr(policy, "row_wise", False))
        self._num_observations = num_observations
        self._past_shape, self._ndim = past.shape, len(past.shape)
        self._axis = axis - self._ndim  # counted from the last, before which there may be any dimensions
        self._is_recurrent = hasattr(policy, "initial_state")

    @property
    def normalizer(self) -> StackedNormalizer | None:
        """Takes the moments of single observations for the policy inside; None if it has no normalizer."""
        inside = getattr(self.policy, "normalizer", None)
        return None if inside is None else StackedNormalizer(inside, self._num_observations)

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """Returns the state of new episodes.

        Returns:
            The last k - 1 observations [batch_size, ...], zeros as yet; whether there have been any, bool
            [batch_size]; and the state of the policy inside, if it has one.
        """
        past = leading_parameter(self.policy).detach().new_zeros(batch_size, *self._past_shape)
        has_begun = past.new_zeros(batch_size, dtype=torch.bool)
        if not self._is_recurrent:
            return past, has_begun
        inside: Any = self.policy.initial_state(batch_size)  # type: ignore[operator]
        return past, has_begun, inside

    def forward(self, observations: Tensor, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Returns actions [N, ...] and the next state, for observations [N, ...] and a state."""
        past, has_begun, *inside = state
        first = torch.cat([observations] * (self._num_observations - 1), dim=self._axis)
        past = torch.where(has_begun.reshape(*has_begun.shape, *[1] * self._ndim), past, first)
        stacked = torch.cat([past, observations], dim=self._axis)
        kept = past.shape[self._axis]
        following = stacked.narrow(self._axis, stacked.shape[self._axis] - kept, kept)
        has_begun = torch.ones_like(has_begun)
        if not self._is_recurrent:
            return self.policy(stacked), (following, has_begun)
        actions, next_inside = self.policy(stacked, *inside)
        return actions, (following, has_begun, next_inside)


class StackedNormalizer:
    """Gives the normalizer of stacked vectors the moments of single ones: the same for each of the k."""

    def __init__(self, normalizer: ObservationNormalizer, num_observations: int) -> None:
        """Takes the normalizer, of k x O features, and k."""
        self._normalizer, self._num_observations = normalizer, num_observations

    def merge(self, other: RunningStatistics) -> None:
        """Adds the observations of a generation: moments of O features."""
        repeated = RunningStatistics(0)
        repeated.count = other.count
        repeated.mean, repeated.m2 = (each.repeat(self._num_observations) for each in (other.mean, other.m2))
        self._normalizer.merge(repeated)
