"""Policies: ordinary modules from observations to bounded actions, unaware of any perturbation.

Each normalises its observations itself, so that what is saved, evaluated or exported is complete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from es_flipout.config import Activation, PolicyConfig
from es_flipout.normalization import ObservationNormalizer

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}
OUTPUT_GAIN = 0.01
"""Scale of the last layer's initial weights: a new policy starts near the middle of the action range."""


class MLPPolicy(nn.Module):
    """A multi-layer perceptron whose output is squashed by tanh into the action range.

    With no hidden layer it is a linear policy.
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        observation_size: int,
        action_low: Tensor,
        action_high: Tensor,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        normalize_observations: bool = True,
        observation_clip: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy with orthogonal initial weights and zero biases.

        Args:
            observation_size: number of observation features O.
            action_low: lower bound of each action, [A], finite.
            action_high: upper bound of each action, [A], finite.
            hidden_sizes: widths of the hidden layers.
            activation: nonlinearity after each hidden layer.
            normalize_observations: whether observations are standardised by running moments.
            observation_clip: bound on a standardised observation.
            generator: source of the initial weights.

        Raises:
            ValueError: if a bound of the action range is not finite.
        """
        super().__init__()
        if not (torch.isfinite(action_low).all() and torch.isfinite(action_high).all()):
            raise ValueError("the action range must be finite on both sides to squash actions into it")
        self.normalizer = (
            ObservationNormalizer(observation_size, observation_clip) if normalize_observations else None
        )
        sizes = [observation_size, *hidden_sizes, action_low.shape[0]]
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
        self.register_buffer("action_low", action_low.to(torch.float32))
        self.register_buffer("action_high", action_high.to(torch.float32))

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions [N, A] within the action range for observations [N, O]."""
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        squashed = torch.tanh(self.network(observations))
        actions = self.action_low + (squashed + 1.0) * (0.5 * (self.action_high - self.action_low))
        return actions.clamp(self.action_low, self.action_high)  # rounding may overshoot by an ulp


def make_policy(
    config: PolicyConfig,
    observation_space: gym.Space[object],
    action_space: gym.Space[object],
    generator: torch.Generator | None = None,
) -> MLPPolicy:
    """Builds the configured policy for an environment's spaces.

    Args:
        config: the policy's description.
        observation_space: a single environment's observation space, a one-dimensional Box.
        action_space: a single environment's action space, a one-dimensional Box with finite bounds.
        generator: source of the initial weights.

    Raises:
        ValueError: if a space is not such a Box.
    """
    if not isinstance(action_space, gym.spaces.Box):
        raise ValueError(
            f"policy.kind {config.kind!r} gives continuous actions, but the environment's action space is "
            f"{action_space}; choose an environment with a Box action space"
        )
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"policy.kind {config.kind!r} needs a one-dimensional Box observation space, "
            f"got {observation_space}; gymnasium.wrappers.FlattenObservation may help"
        )
    return MLPPolicy(
        observation_space.shape[0],
        torch.as_tensor(np.asarray(action_space.low)),
        torch.as_tensor(np.asarray(action_space.high)),
        hidden_sizes=config.hidden_sizes if config.kind == "mlp" else (),
        activation=config.activation,
        normalize_observations=config.normalize_observations,
        observation_clip=config.observation_clip,
        generator=generator,
    )
