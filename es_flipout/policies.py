"""Policies: ordinary modules from observations to actions, unaware of any perturbation.

Each normalises its observations itself, so that what is saved, evaluated or exported is complete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.config import ActionBounds, Activation, PolicyConfig
from es_flipout.normalization import ObservationNormalizer


class ELU(nn.Module):
    """x where it is positive, exp(x) - 1 elsewhere.

    torch's own ELU and SiLU round an element differently by its place in memory (vectors or the remainder),
    so that a member's actions would depend on its row; torch.exp does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as given."""
        return torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)


class SiLU(nn.Module):
    """x sigmoid(x); see `ELU` for why it is not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as given."""
        return x / (1 + torch.exp(-x))


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": ELU, "silu": SiLU}
OUTPUT_GAIN = 0.01
"""Scale of the last layer's initial weights: a new policy starts near the middle of the action range."""


class BoxActions(nn.Module):
    """Real outputs to actions of a one-dimensional Box, float32 [N, A]."""

    low: Tensor
    high: Tensor
    middle: Tensor
    reach: Tensor

    def __init__(self, space: spaces.Box, bounds: ActionBounds) -> None:
        """Takes the space.

        Args:
            space: a Box of shape (A,).
            bounds: "rescale" squashes outputs by tanh into the range, which must be finite; "clip" takes them
                as actions and cuts off what is outside.

        Raises:
            ValueError: if the space does not fit.
        """
        super().__init__()
        if len(space.shape) != 1:
            raise ValueError(
                f"actions must be vectors, got {space}; gymnasium.wrappers.TransformAction can flatten them"
            )
        low, high = (torch.from_numpy(bound.astype(np.float32)) for bound in (space.low, space.high))
        if bounds == "rescale" and not space.is_bounded():
            raise ValueError(
                f"the action range must be finite on both sides to squash actions into it, got {space}; "
                "set policy.action_bounds to clip, or wrap it in gymnasium.wrappers.RescaleAction"
            )
        self.num_outputs = space.shape[0]
        self.bounds = bounds
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("middle", (low + high) / 2 if bounds == "rescale" else None)
        self.register_buffer("reach", (high - low) / 2 if bounds == "rescale" else None)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N, A] within the range."""
        if self.bounds == "rescale":  # clipped too, because rounding may overshoot by an ulp
            outputs = torch.addcmul(self.middle, torch.tanh(outputs), self.reach)
        return outputs.clamp(self.low, self.high)


class DiscreteActions(nn.Module):
    """The highest of n outputs to an action of a Discrete space, int64 [N]."""

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = int(space.n)
        self.start = int(space.start)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns actions [N]; of equal outputs the first wins."""
        return outputs.argmax(dim=-1) + self.start


class MultiDiscreteActions(nn.Module):
    """The highest output of each group to an action of a MultiDiscrete space, int64 [N, A]."""

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
        """Returns actions [N, A]."""
        groups = outputs.split_with_sizes(self.sizes, dim=-1)
        chosen = [group.argmax(dim=-1) + start for group, start in zip(groups, self.starts, strict=True)]
        return torch.stack(chosen, dim=-1)


ActionHead = BoxActions | DiscreteActions | MultiDiscreteActions
"""A module from `num_outputs` real outputs to actions of a space."""


def make_action_head(space: gym.Space[Any], bounds: ActionBounds = "rescale") -> ActionHead:
    """Returns the head that gives actions of `space`.

    Raises:
        ValueError: if there is none for such a space; the message says what helps.
    """
    if isinstance(space, spaces.Box):
        return BoxActions(space, bounds)
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(space)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space)
    raise ValueError(
        f"{type(space).__name__} actions are not supported (Box, Discrete and MultiDiscrete are): "
        "gymnasium.wrappers.TransformAction can map one of those to the environment's own"
    )


def vector_box(space: gym.Space[Any]) -> spaces.Box:
    """Returns the space of observations if they are vectors.

    Raises:
        ValueError: if they are something else; the message says what helps.
    """
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space
    shape = f" of shape {space.shape}" if isinstance(space, spaces.Box) else ""
    raise ValueError(
        f"{type(space).__name__} observations{shape} are not supported, a policy needs vectors (a Box of one "
        "dimension): wrap the environment in gymnasium.wrappers.FlattenObservation"
    )


class MLPPolicy(nn.Module):
    """A multi-layer perceptron from a vector observation to an action.

    With no hidden layer it is a linear policy.
    """

    row_wise: ClassVar[bool] = True

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        action_bounds: ActionBounds = "rescale",
        normalize_observations: bool = True,
        observation_clip: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy with orthogonal initial weights and zero biases.

        Args:
            observation_space: a single environment's observations, a Box of shape (O,).
            action_space: a single environment's actions: a Box of shape (A,), Discrete or MultiDiscrete.
            hidden_sizes: widths of the hidden layers.
            activation: nonlinearity after each hidden layer.
            action_bounds: how outputs become actions of a Box, see `BoxActions`.
            normalize_observations: whether observations are standardised by running moments.
            observation_clip: bound on a standardised observation.
            generator: source of the initial weights.

        Raises:
            ValueError: if a space is none of these.
        """
        super().__init__()
        observation_size = vector_box(observation_space).shape[0]
        head = make_action_head(action_space, action_bounds)
        self.normalizer = (
            ObservationNormalizer(observation_size, observation_clip) if normalize_observations else None
        )
        sizes = [observation_size, *hidden_sizes, head.num_outputs]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(inputs, outputs)
            is_last = index == len(sizes) - 2
            gain = OUTPUT_GAIN if is_last else math.sqrt(2.0) if activation != "tanh" else 1.0
            nn.init.orthogonal_(linear.weight, gain=gain, generator=generator)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if not is_last:
                layers.append(ACTIVATIONS[activation]())
        self.network = nn.Sequential(*layers)
        self.head = head

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions [N, ...] of the action space for observations [N, O]."""
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        actions: Tensor = self.head(self.network(observations))
        return actions


def make_policy(
    config: PolicyConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    generator: torch.Generator | None = None,
) -> MLPPolicy:
    """Builds the configured policy for an environment's spaces; see `MLPPolicy` for the arguments."""
    return MLPPolicy(
        observation_space,
        action_space,
        hidden_sizes=config.hidden_sizes if config.kind == "mlp" else (),
        activation=config.activation,
        action_bounds=config.action_bounds,
        normalize_observations=config.normalize_observations,
        observation_clip=config.observation_clip,
        generator=generator,
    )
