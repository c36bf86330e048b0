"""The border to a user's policy: what it returns becomes actions that an environment takes, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from es_flipout.described import described
from es_flipout.envs.contract import torch_dtype
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.rollout.player import PlayError


class PolicyActions:
    """Runs a policy, and turns what it returns into actions of an environment.

    A policy must return a tensor [N, *action shape], of floats for a Box of floats and of integers (or bools)
    for every other space: converting one into the other would choose an action that it did not mean.
    """

    def __init__(self, policy: nn.Module, space: gym.Space[Any], device: torch.device | str = "cpu") -> None:
        """Takes what the actions are for.

        Args:
            policy: whose actions they are, for its name.
            space: of a single environment's actions.
            device: where the actions are wanted.
        """
        self._name = type(policy).__name__
        self._space, self._device = space, torch.device(device)
        self._shape = torch.Size(space.shape or ())
        self._dtype = torch_dtype(space)

    def run(self, act: Callable[[], Any], num_rows: int) -> Tensor:
        """Returns the actions of `act()` for N observations, [N, *action shape], of the space's dtype.

        Raises:
            PlayError: if it raises, or returns anything but actions.
        """
        try:
            return self.checked(act(), num_rows)
        except FOREIGN as error:
            raise PlayError(f"policy {self._name} cannot act: {error_text(error)}") from error

    def checked(self, actions: Any, num_rows: int) -> Tensor:
        """Returns actions for N observations, [N, *action shape], of the space's dtype.

        Raises:
            TypeError: if they are of another type, shape or kind of number.
        """
        if (
            isinstance(actions, Tensor)
            and actions.shape == (num_rows, *self._shape)
            and actions.is_floating_point() == self._dtype.is_floating_point
            and not actions.is_complex()
        ):
            return actions.to(self._device, self._dtype)
        kind = "real numbers" if self._dtype.is_floating_point else "integers"
        raise TypeError(
            f"it must return actions for {self._space}, {kind} {[num_rows, *self._shape]} for {num_rows} "
            f"observation{'' if num_rows == 1 else 's'}, but returns {described(actions)}"
        )
