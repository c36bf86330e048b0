"""A policy over the parts of observations (images and vectors, say), called with flat rows of numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from es_flipout.policies.flat_box import FlatBox


class StructuredPolicy(nn.Module):
    """Takes flat rows [N, F], and calls a policy with the dict or tuple of tensors [N, ...] in them.

    Attributes:
        policy: the policy inside.
        row_wise: as the policy inside declares it.
    """

    def __init__(self, policy: nn.Module, space: FlatBox) -> None:
        """Takes the policy and the space of the rows."""
        super().__init__()
        self.policy = policy
        self.row_wise = bool(getattr(policy, "row_wise", False))
        self._space = space

    def forward(self, observations: Tensor, *state: Any) -> Any:
        """Returns what the policy returns: actions [N, ...], with the next state if it is given one."""
        return self.policy(self._space.unflatten(observations), *state)


class RecurrentStructuredPolicy(StructuredPolicy):
    """The same around a recurrent policy."""

    def initial_state(self, batch_size: int) -> Any:
        """Returns the policy's state of `batch_size` new episodes."""
        return self.policy.initial_state(batch_size)  # type: ignore[operator] # it has one: see `structured`


def structured(policy: nn.Module, space: FlatBox) -> StructuredPolicy:
    """Returns a policy of flat rows, given one of their parts."""
    kind = RecurrentStructuredPolicy if hasattr(policy, "initial_state") else StructuredPolicy
    return kind(policy, space)
