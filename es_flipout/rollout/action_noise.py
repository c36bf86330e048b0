"""Gaussian noise on the actions of training episodes: a' = clip(a + sigma z, low, high).

z depends on the reset seed of the episode, the env step and the place in the action alone (see
`es_flipout.step_noise`), so that members of an antithetic pair, and whoever plays them, meet the same noise.
The sum is computed in float64 and rounded once, to the dtype of the action space.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.compilation import compiled
from es_flipout.envs.transfer import to_device
from es_flipout.rollout.moments import Ints
from es_flipout.step_noise import ACTIONS, episode_keys, fill_normal, normal

Array = NDArray[Any]


def check_action_noise(space: gym.Space[Any]) -> None:
    """Checks that noise can be added to the actions of a space.

    Raises:
        ValueError: if it is not a Box of floats.
    """
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        raise ValueError(
            f"action noise needs actions that are a Box of floats, got {space}: set rollout.action_noise to 0"
        )


def action_keys(reset_seeds: Ints) -> Ints:
    """Returns the keys of the noise of episodes, int64 [M], from their reset seeds."""
    return episode_keys(reset_seeds, ACTIONS)


def action_bounds(space: spaces.Box, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest actions of a Box, float64 [*action shape] each."""
    low, high = (torch.from_numpy(each.astype(np.float64)).to(device) for each in (space.low, space.high))
    return low, high


def with_noise(actions: Tensor, noise: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Returns actions plus noise, clipped to their bounds, of the dtype of `actions`.

    Args:
        actions: [N, *action shape], floats.
        noise: float64 [N, *action shape].
        bounds: see `action_bounds`.
    """
    return (actions.double() + noise).clamp(*bounds).to(actions.dtype)


class ActionNoise:
    """The noise on the actions in N envs, each with the episode that it plays.

    Numbers are always drawn on the host, row by row, so that they are the same in any company, and in every
    player on the CPU.
    """

    def __init__(
        self, sigma: float, space: gym.Space[Any], num_envs: int, device: torch.device | str = "cpu"
    ) -> None:
        """Has no episodes yet.

        Args:
            sigma: standard deviation of the noise, in units of the action.
            space: of a single environment's actions.
            num_envs: N.
            device: where tensors of actions are; those in NumPy are on the host.

        Raises:
            ValueError: if the space is not a Box of floats.
        """
        check_action_noise(space)
        assert isinstance(space, spaces.Box)
        self._sigma, self._shape, self._device = sigma, space.shape, torch.device(device)
        self._bounds = action_bounds(space, device)
        self._low, self._high = (each.flatten().numpy() for each in action_bounds(space))
        self._keys = np.zeros(num_envs, np.int64)
        self._numbers = np.zeros((num_envs, math.prod(space.shape)))

    def begin(self, envs: Ints, reset_seeds: Ints) -> None:
        """Begins episodes in `envs`, int64 [M], that start from `reset_seeds`, int64 [M]."""
        self._keys[envs] = action_keys(reset_seeds)

    def added(self, actions: Tensor, live: Array, steps: Ints) -> Tensor:
        """Returns actions with noise, same shape, dtype and device.

        Args:
            actions: in all envs, [N, *action shape].
            live: envs that hold an episode, bool [N]; actions in the others mean nothing.
            steps: env steps that the episodes have made, int64 [N].
        """
        fill_normal(self._numbers, live, self._keys, steps)
        noise = torch.from_numpy(self._sigma * self._numbers).view(-1, *self._shape)
        return with_noise(actions, to_device(noise, self._device), self._bounds)

    def add(self, actions: Array, live: Array, steps: Ints) -> None:
        """Does the same in place, to actions [N, A] in NumPy; the rows of other envs are left as they are."""
        fill_normal(self._numbers, live, self._keys, steps)
        _add(actions, live, self._numbers, self._sigma, self._low, self._high)

    def added_to_one(self, action: Array, step: int) -> Array:
        """Returns the action of the only env, [*action shape], with noise, of the same dtype."""
        actions = action.reshape(1, -1).astype(np.float64)
        self.add(actions, np.ones(1, np.bool_), np.array([step]))
        return actions.reshape(action.shape).astype(action.dtype)


@compiled
def _add(actions: Any, live: Any, numbers: Any, sigma: float, low: Any, high: Any) -> None:
    """Adds sigma times `numbers`, float64 [N, A], to the live rows of actions [N, A], and clips them."""
    for n in range(len(live)):
        if not live[n]:
            continue
        for k in range(len(low)):
            action = actions[n, k] + sigma * numbers[n, k]
            if action < low[k]:
                action = low[k]
            elif action > high[k]:
                action = high[k]
            actions[n, k] = action


class DeviceActionNoise:
    """The same in tensors alone, by operations that a CUDA graph can record."""

    def __init__(
        self, sigma: float, space: gym.Space[Any], reset_seeds: Ints, device: torch.device | str = "cpu"
    ) -> None:
        """Takes the episodes of a generation.

        Args:
            sigma: standard deviation of the noise, in units of the action.
            space: of a single environment's actions, a Box of floats [A].
            reset_seeds: that the episodes start from, int64 [episodes].
            device: where the actions are.

        Raises:
            ValueError: if the space is not a Box of floats.
        """
        check_action_noise(space)
        assert isinstance(space, spaces.Box)
        self._sigma, self._bounds = sigma, action_bounds(space, device)
        self._keys = torch.from_numpy(action_keys(reset_seeds)).to(device)

    def added(self, actions: Tensor, episodes: Tensor, steps: Tensor) -> Tensor:
        """Returns actions with noise, [N, A], same dtype.

        Args:
            actions: [N, A].
            episodes: which episode each env plays, int64 [N].
            steps: env steps that these have made, int64 [N].
        """
        noise = normal(self._keys[episodes], steps, actions.shape[1], torch.float64)
        return with_noise(actions, self._sigma * noise, self._bounds)
