"""A convolutional policy from images to actions: convolutions, fully connected layers, action head.

Images are scaled to [0, 1] by the bounds of their space, so no running moments are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.choices import (
    ACTION_BOUNDS,
    ACTIVATION,
    CONV_LAYERS,
    HIDDEN_SIZES,
    INITIALIZATION,
    ActionBounds,
    Activation,
    Initialization,
)
from es_flipout.policies.activations import ACTIVATIONS
from es_flipout.policies.heads import make_action_head
from es_flipout.policies.initialization import hidden_gain, initialized
from es_flipout.policies.mlp import hidden_layers, output_layer
from es_flipout.policies.observations import box

ChannelOrder = Literal["auto", "first", "last"]
MOST_CHANNELS = 4
"""Most channels of an image if its shape alone must tell channels from height and width."""


class ImageScaling(nn.Module):
    """Maps images of a space to floats in [0, 1], channels first."""

    low: Tensor
    reach: Tensor

    def __init__(self, space: spaces.Box, order: ChannelOrder) -> None:
        """Takes the space, a bounded Box of three dimensions.

        Args:
            space: of images (H, W, C) or (C, H, W), uint8 or floating.
            order: position of the channels; "auto" decides by the shape.

        Raises:
            ValueError: if it is another kind of space, or the position of the channels is ambiguous.
        """
        super().__init__()
        if len(space.shape) != 3:
            raise ValueError(
                f"policy.kind cnn needs images, a Box of three dimensions, got shape {space.shape}; "
                "policy.kind mlp takes vectors"
            )
        if not space.is_bounded():
            raise ValueError(f"images must have finite bounds, which scale them to [0, 1], got {space}")
        self.channels_last = channels_are_last(space.shape, order)
        shape = space.shape
        self.shape = (shape[2], *shape[:2]) if self.channels_last else shape
        low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
        reach = np.where(high > low, high - low, 1.0)  # a pixel that never changes becomes 0
        if (low == low.flat[0]).all() and (reach == reach.flat[0]).all():
            low, reach = low.reshape(-1)[:1], reach.reshape(-1)[:1]  # usually all pixels have the same bounds
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32))
        self.register_buffer("reach", torch.as_tensor(reach, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Returns images [N, C, H, W] in [0, 1] for images [N, H, W, C] or [N, C, H, W] of any dtype."""
        images = (images.to(self.low.dtype) - self.low) / self.reach
        return images.movedim(-1, -3) if self.channels_last else images


def channels_are_last(shape: tuple[int, ...], order: ChannelOrder) -> bool:
    """Returns whether the channels are the last dimension of images of a shape, or else the first.

    Raises:
        ValueError: if the order is "auto", and the shape does not tell.
    """
    if order != "auto":
        return order == "last"
    last, first = shape[2] <= MOST_CHANNELS, shape[0] <= MOST_CHANNELS
    if last == first:
        raise ValueError(
            f"images of shape {shape} may have their channels first or last: "
            "set policy.kwargs channel_order to first or last"
        )
    return last


class CNNPolicy(nn.Module):
    """Convolutions and fully connected layers from an image to an action."""

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        conv_layers: Sequence[Sequence[int]] = CONV_LAYERS,
        hidden_sizes: Sequence[int] = HIDDEN_SIZES,
        activation: Activation = ACTIVATION,
        init: Initialization = INITIALIZATION,
        action_bounds: ActionBounds = ACTION_BOUNDS,
        channel_order: ChannelOrder = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy with zero biases.

        Args:
            observation_space: images, a bounded Box of shape (H, W, C) or (C, H, W), uint8 or floating.
            action_space: a single environment's actions: a Box of shape (A,), Discrete or MultiDiscrete.
            conv_layers: channels, kernel, stride and padding of each convolution.
            hidden_sizes: widths of the fully connected layers after them.
            activation: nonlinearity after each convolution and each hidden layer.
            init: initial weights, see `initialization`.
            action_bounds: how outputs become actions of a Box, see `BoxActions`.
            channel_order: whether the channels are the "first" or the "last" dimension of an image; "auto"
                picks the one of size 4 or less, and raises if both or neither are.
            generator: source of the initial weights.

        Raises:
            ValueError: if a space is not supported, or a kernel is larger than its input.
        """
        super().__init__()
        if channel_order not in ("auto", "first", "last"):
            raise ValueError(f"channel_order must be auto, first or last, got {channel_order!r}")
        self.scaling = ImageScaling(box(observation_space), channel_order)
        head = make_action_head(action_space, action_bounds)
        channels, *size = self.scaling.shape
        layers: list[nn.Module] = []
        gain = hidden_gain(init, activation)
        for index, (width, kernel, stride, padding) in enumerate(conv_layers):
            if min(size) + 2 * padding < kernel:
                raise ValueError(
                    f"policy.conv_layers[{index}]: a kernel of {kernel} with a padding of {padding} "
                    f"does not fit {size[0]}x{size[1]}"
                )
            convolution = nn.Conv2d(channels, width, kernel, stride, padding)
            layers += [initialized(convolution, init, gain, generator), ACTIVATIONS[activation]()]
            channels, size = width, [(each + 2 * padding - kernel) // stride + 1 for each in size]
        self.convolutions = nn.Sequential(*layers)
        sizes = [channels * size[0] * size[1], *hidden_sizes]
        hidden = hidden_layers(sizes[0], hidden_sizes, activation, init, generator)
        self.network = nn.Sequential(*hidden, output_layer(sizes[-1], head.num_outputs, init, generator))
        self.head = head

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions [N, ...] of the action space for images [N, H, W, C] or [N, C, H, W]."""
        features = self.convolutions(self.scaling(observations)).flatten(1)
        actions: Tensor = self.head(self.network(features))
        return actions
