"""One policy, one observation at a time, in an environment of Gymnasium: quick on one core.

torch takes six to seven times as long as NumPy for a call of an MLP 64-64, most of it between operations
(docs/benchmarks.md). Hence `MLPPolicy` and `LinearPolicy` run in NumPy, all others in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from es_flipout.policies import (
    ActionHead,
    DiscreteActions,
    IntegerActions,
    MLPPolicy,
    MultiDiscreteActions,
    is_plain_mlp,
)
from es_flipout.policies.activations import ELU, SiLU
from es_flipout.rollout.policy_actions import PolicyActions
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent

Array = NDArray[Any]
Act = Callable[[Array], Any]
"""From an observation, of the policy's dtype, to an action of the environment's space."""


def make_act(policy: nn.Module, action_space: gym.Space[Any]) -> Act:
    """Returns how a policy acts in one episode, with the weights that it has now.

    A recurrent policy starts from its initial state.

    Args:
        policy: a policy on the CPU, as `MLPPolicy` is one.
        action_space: what its actions are of; they get its dtype.
    """
    if is_plain_mlp(policy):
        assert isinstance(policy, MLPPolicy)
        act = _numpy_mlp(policy)
    else:
        act = _torch_policy(policy, action_space)
    if isinstance(action_space, spaces.Discrete):
        return lambda observation: int(act(observation))
    dtype = action_space.dtype
    return lambda observation: np.asarray(act(observation), dtype)


def _torch_policy(policy: nn.Module, action_space: gym.Space[Any]) -> Act:
    state = RecurrentState(policy, 1) if is_recurrent(policy) else None
    actions = PolicyActions(policy, action_space)

    def act(observation: Array) -> Array:
        row = torch.from_numpy(observation).unsqueeze(0)
        act = partial(policy, row) if state is None else partial(state.act, policy, row, slice(None))
        array: Array = actions.run(act, 1)[0].numpy()
        return array

    return act


def _numpy_mlp(policy: MLPPolicy) -> Act:
    layers = [_numpy_layer(layer) for layer in policy.network]
    head = _numpy_head(policy.head)
    normalizer = policy.normalizer
    if normalizer is None:
        normalize: Callable[[Array], Array] = lambda x: x  # noqa: E731
    else:
        dtype = next(policy.parameters()).dtype
        mean, scale = (each.numpy() for each in normalizer.standardizer(dtype))
        clip = normalizer.clip

        def normalize(x: Array) -> Array:
            standardized: Array = np.minimum(np.maximum((x - mean) * scale, -clip), clip)
            return standardized

    def act(observation: Array) -> Any:
        x = normalize(observation)
        for layer in layers:
            x = layer(x)
        return head(x)

    return act


def _numpy_layer(layer: nn.Module) -> Callable[[Array], Array]:
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # which share memory
        return lambda x: weight @ x + bias
    return _ACTIVATIONS[type(layer)]


_ACTIVATIONS: dict[type[nn.Module], Callable[[Array], Array]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x: np.maximum(x, 0),
    ELU: lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    SiLU: lambda x: x / (1 + np.exp(-x)),
}


def _numpy_head(head: ActionHead) -> Act:
    if isinstance(head, DiscreteActions):
        start = head.start
        return lambda x: x.argmax() + start
    if isinstance(head, MultiDiscreteActions):
        ends = np.cumsum(head.sizes)[:-1]
        starts = np.array(head.starts)
        return lambda x: np.array([part.argmax() for part in np.split(x, ends)]) + starts
    if isinstance(head, IntegerActions):
        return lambda x: head(torch.from_numpy(x)).numpy()
    low, high = head.low.numpy(), head.high.numpy()
    if head.bounds == "clip":
        return lambda x: np.minimum(np.maximum(x, low), high)
    middle, reach = head.middle.numpy(), head.reach.numpy()
    return lambda x: np.minimum(np.maximum(middle + np.tanh(x) * reach, low), high)
