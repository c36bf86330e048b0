"""Multi-layer perceptrons from a vector observation to an action, with and without hidden layers.

A policy is an ordinary module, unaware of any perturbation. It normalizes its observations itself, so
that a saved or exported policy is complete.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import NoneType
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor, nn

from es_flipout.choices import (
    ACTION_BOUNDS,
    ACTIVATION,
    HIDDEN_SIZES,
    INITIALIZATION,
    NORMALIZE_OBSERVATIONS,
    OBSERVATION_CLIP,
    ActionBounds,
    Activation,
    Initialization,
)
from es_flipout.normalization import ObservationNormalizer
from es_flipout.policies.activations import ACTIVATIONS
from es_flipout.policies.heads import (
    BoxActions,
    DiscreteActions,
    IntegerActions,
    MultiDiscreteActions,
    make_action_head,
)
from es_flipout.policies.initialization import OUTPUT_GAIN, hidden_gain, initialized
from es_flipout.policies.observations import make_normalizer, vector_box


def hidden_layers(
    inputs: int,
    hidden_sizes: Sequence[int],
    activation: Activation,
    init: Initialization,
    generator: torch.Generator | None,
) -> list[nn.Module]:
    """Returns fully connected layers of these widths for `inputs` features, each with its activation."""
    layers: list[nn.Module] = []
    gain = hidden_gain(init, activation)
    for width, following in itertools.pairwise([inputs, *hidden_sizes]):
        layers.append(initialized(nn.Linear(width, following), init, gain, generator))
        layers.append(ACTIVATIONS[activation]())
    return layers


def output_layer(
    inputs: int, outputs: int, init: Initialization, generator: torch.Generator | None
) -> nn.Linear:
    """Returns the last layer; its small weights make a new policy act near the middle of the action range."""
    return initialized(nn.Linear(inputs, outputs), init, OUTPUT_GAIN, generator)


class MLPPolicy(nn.Module):
    """A multi-layer perceptron from a vector observation to an action.

    Attributes:
        row_wise: declares that forward treats all leading dimensions as independent rows.
        normalizer: standardizes observations; None if they are used as they are.
    """

    row_wise: ClassVar[bool] = True

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        hidden_sizes: Sequence[int] = HIDDEN_SIZES,
        activation: Activation = ACTIVATION,
        init: Initialization = INITIALIZATION,
        action_bounds: ActionBounds = ACTION_BOUNDS,
        normalize_observations: bool = NORMALIZE_OBSERVATIONS,
        observation_clip: float = OBSERVATION_CLIP,
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy with zero biases.

        Args:
            observation_space: a single environment's observations, a Box of shape (O,).
            action_space: a single environment's actions: a Box of shape (A,), Discrete or MultiDiscrete.
            hidden_sizes: widths of the hidden layers; none for a linear policy.
            activation: nonlinearity after each hidden layer.
            init: initial weights, see `initialization`.
            action_bounds: how outputs become actions of a Box, see `BoxActions`.
            normalize_observations: whether observations are standardized by running moments.
            observation_clip: bound on a standardized observation.
            generator: source of the initial weights.

        Raises:
            ValueError: if a space is not supported.
        """
        super().__init__()
        observations = vector_box(observation_space)
        head = make_action_head(action_space, action_bounds)
        self.normalizer = make_normalizer(observations, normalize_observations, observation_clip)
        inputs = observations.shape[0]
        layers = hidden_layers(inputs, hidden_sizes, activation, init, generator)
        last = output_layer([inputs, *hidden_sizes][-1], head.num_outputs, init, generator)
        self.network = nn.Sequential(*layers, last)
        self.head = head

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions [N, ...] of the action space for observations [N, O]."""
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        actions: Tensor = self.head(self.network(observations))
        return actions


def is_plain_mlp(policy: nn.Module) -> bool:
    """Returns whether a policy is an unmodified `MLPPolicy` or `LinearPolicy`.

    Hooks, replaced parts and layers that share a parameter are modifications.
    """
    if not isinstance(policy, MLPPolicy) or type(policy) not in (MLPPolicy, LinearPolicy):
        return False
    layers = list(policy.network)
    linears, activations = layers[0::2], layers[1::2]
    heads = (BoxActions, IntegerActions, DiscreteActions, MultiDiscreteActions)
    return (
        all(type(m) is nn.Linear and m.bias is not None for m in linears)
        and all(type(m) in ACTIVATIONS.values() for m in activations)
        and len(list(policy.network.parameters())) == 2 * len(linears)
        and type(policy.network) is nn.Sequential
        and type(policy.head) in heads
        and type(policy.normalizer) in (ObservationNormalizer, NoneType)
        and not any(map(_is_modified, policy.modules()))
    )


def _is_modified(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class LinearPolicy(MLPPolicy):
    """One matrix and one bias from a vector observation to an action."""

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        init: Initialization = INITIALIZATION,
        action_bounds: ActionBounds = ACTION_BOUNDS,
        normalize_observations: bool = NORMALIZE_OBSERVATIONS,
        observation_clip: float = OBSERVATION_CLIP,
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy; see `MLPPolicy` for the arguments."""
        super().__init__(
            observation_space,
            action_space,
            hidden_sizes=(),
            init=init,
            action_bounds=action_bounds,
            normalize_observations=normalize_observations,
            observation_clip=observation_clip,
            generator=generator,
        )
