"""A policy as a plain function of tensors: observation parts and state in, action and next state out.

Normalization, clipping, rescaling, flattening and the one-hot form of categories are all inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from es_flipout.envs.contract import torch_dtype
from es_flipout.envs.flat_observations import one_hot
from es_flipout.parameters import leading_parameter
from es_flipout.policies import FlatBox
from es_flipout.policies.flat_box import Leaf
from es_flipout.rollout.recurrence import is_recurrent
from es_flipout.run.loaded_policy import LoadedPolicy


@dataclass(frozen=True)
class Input:
    """An input of the exported policy: an observation, a part of one, or a part of the state.

    Attributes:
        name: in the file.
        shape: of one row; the file takes [N, *shape].
        dtype: of its numbers. Floats are float32, whatever the environment has: the policy computes in it.
        path: keys that lead to the part of an observation; empty for a whole one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: tuple[str | int, ...] = ()


class ExportedModule(nn.Module):
    """Calls a policy with the parts of its observations and of its state as separate tensors.

    Attributes:
        observations: inputs that make up an observation.
        states: inputs that make up a state, in the order of its leaves; none for a policy without one.
        initial_state: state of a new episode, [1, ...] for each of `states`.
    """

    def __init__(self, policy: LoadedPolicy) -> None:
        """Takes the policy, on the CPU."""
        super().__init__()
        self.policy = policy.module
        flat = policy.flat_space
        self._leaves: list[Leaf] | None = flat.leaves if isinstance(flat, FlatBox) else None
        self._dtype = leading_parameter(policy.module).dtype
        self._action_dtype = torch_dtype(policy.action_space)
        self.initial_state: list[Tensor] = []
        self._structure: Any = None
        if is_recurrent(policy.module):
            begun: Any = policy.module.initial_state(1)  # type: ignore[operator] # it is recurrent
            self.initial_state, self._structure = tree_flatten(begun)
        self.observations = _observation_inputs(flat)
        self.states = [
            Input(
                "state" if len(self.initial_state) == 1 else f"state_{k}", tuple(leaf.shape[1:]), leaf.dtype
            )
            for k, leaf in enumerate(self.initial_state)
        ]

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the order of `forward`."""
        return [each.name for each in (*self.observations, *self.states)]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in the order of what `forward` returns."""
        return ["action", *(f"next_{each.name}" for each in self.states)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns actions [N, ...] and the next state's leaves, given `observations` and `states`."""
        count = len(self.observations)
        rows = self._rows(inputs[:count])
        if self._structure is None:
            actions, following = self.policy(rows), ()
        else:
            actions, state = self.policy(rows, tree_unflatten(list(inputs[count:]), self._structure))
            following = tuple(tree_flatten(state)[0])
        if not actions.is_floating_point():
            actions = actions.to(self._action_dtype)
        return actions, *following

    def _rows(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns observations as the policy takes them, of its dtype."""
        if self._leaves is None:
            return parts[0].to(self._dtype)
        flat = [part.unsqueeze(-1).flatten(1) for part in parts]
        numbers = [
            each if leaf.categories is None else one_hot(each, leaf.categories)
            for each, leaf in zip(flat, self._leaves, strict=True)
        ]
        return torch.cat([each.to(self._dtype) for each in numbers], dim=1)


def _observation_inputs(space: spaces.Box) -> list[Input]:
    if not isinstance(space, FlatBox):
        return [Input("observation", space.shape, _dtype(space.dtype))]
    names = ["_".join(["observation", *map(str, leaf.path)]) for leaf in space.leaves]
    if len(set(names)) < len(names):  # keys that contain _ themselves
        names = [f"observation_{k}" for k in range(len(names))]
    return [
        Input(name, leaf.space.shape or (), _dtype(leaf.dtype), leaf.path)
        for name, leaf in zip(names, space.leaves, strict=True)
    ]


def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Returns the dtype of an input for observations of a dtype."""
    if dtype.kind == "f":
        return torch.float32
    found: NDArray[Any] = np.empty(0, dtype)
    return torch.from_numpy(found).dtype
