"""The state of a recurrent policy, kept for each env and reset with its episode.

A recurrent policy is one with `initial_state(batch_size)`, whose forward is
`forward(observations, state) -> (actions, state)`. The state is a tensor, or any container of tensors, each
with the batch first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from es_flipout.envs.masks import where_rows


def is_recurrent(policy: nn.Module) -> bool:
    """Returns whether a policy keeps a state."""
    return hasattr(policy, "initial_state")


class RecurrentState:
    """The state of N envs, of which any may act while the others wait.

    Every episode starts from the one state that `initial_state(1)` gives, so that nothing depends on which
    envs are reset together.
    """

    def __init__(self, policy: nn.Module, num_envs: int, *, in_place: bool = False) -> None:
        """Starts all envs.

        Args:
            policy: a recurrent policy.
            num_envs: number of envs N.
            in_place: whether the state stays where it is in memory, which a CUDA graph needs; the policy must
                then not keep what it was given.

        Raises:
            ValueError: if its initial state is not one of tensors [1, ...], or depends on parameters.
        """
        initial_state: Callable[[int], Any] = policy.initial_state  # type: ignore[assignment]
        with torch.enable_grad():
            self._initial, self._structure = tree_flatten(initial_state(1))
        for leaf in self._initial:
            if not isinstance(leaf, Tensor) or leaf.ndim < 1 or leaf.shape[0] != 1:
                raise ValueError(
                    "initial_state(1) must give tensors with the batch first, [1, ...], "
                    f"got {_describe(self._initial, self._structure)}"
                )
            if leaf.requires_grad:
                raise ValueError(
                    "initial_state must not depend on parameters: members would share the unperturbed ones"
                )
        # Copies, which a policy may overwrite.
        self._state = [leaf.expand(num_envs, *leaf.shape[1:]).clone() for leaf in self._initial]
        self._in_place = in_place

    def reset(self, envs: Tensor) -> None:
        """Starts new episodes in `envs`, int64 [M]."""
        self._put(envs, [leaf.expand(len(envs), *leaf.shape[1:]) for leaf in self._initial])

    def act(self, policy: Callable[[Tensor, Any], Any], observations: Tensor, envs: Tensor | slice) -> Tensor:
        """Has some envs act, and keeps their next state.

        Args:
            policy: observations [M, ...] and state to actions [M, ...] and the next state.
            observations: of the envs that act, [M, ...].
            envs: which these are, int64 [M], or a slice of all.

        Returns:
            Their actions, [M, ...].

        Raises:
            ValueError: if the policy does not return a state of the kind that it was given.
        """
        if isinstance(envs, slice):
            given = self._state
        else:
            given = [leaf[envs.to(leaf.device)] for leaf in self._state]
        actions: Tensor
        actions, following = policy(observations, tree_unflatten(given, self._structure))
        leaves, structure = tree_flatten(following)
        if structure != self._structure or any(map(_differ, given, leaves)):
            raise ValueError(
                "a recurrent policy must return a state like the one that it was given, "
                f"{_describe(given, self._structure)}, got {_describe(leaves, structure)}"
            )
        if isinstance(envs, slice):
            self._replace(leaves)
        else:
            self._put(envs, leaves)
        return actions

    def reset_where(self, mask: Tensor) -> None:
        """Starts new episodes in the envs of a mask, bool [N]."""
        self._replace([where_rows(mask, *leaves) for leaves in zip(self._initial, self._state, strict=True)])

    def _replace(self, leaves: list[Tensor]) -> None:
        if not self._in_place:
            self._state = leaves
            return
        # The policy may return what it was given, in another place.
        copies = [leaf.clone() for leaf in leaves] if len(leaves) > 1 else leaves
        for state, leaf in zip(self._state, copies, strict=True):
            state.copy_(leaf)

    def _put(self, envs: Tensor, leaves: list[Tensor]) -> None:
        # Into copies: the policy may hold on to what it returned, or return one tensor twice.
        self._state = [
            leaf.index_copy(0, envs.to(leaf.device), rows)
            for leaf, rows in zip(self._state, leaves, strict=True)
        ]


def _differ(given: Tensor, returned: Any) -> bool:
    same = isinstance(returned, Tensor) and returned.shape == given.shape and returned.dtype == given.dtype
    return not same


def _describe(leaves: list[Any], structure: Any) -> str:
    def of(leaf: Any) -> str:
        return f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__

    return f"{tree_map(of, tree_unflatten(leaves, structure))}"
