"""Initial weights: orthogonal matrices, or Gaussian rows of norm 1 (`normc`, as in OpenAI's baselines).

Orthogonal: Saxe, McClelland and Ganguli (2014, arXiv 1312.6120). Biases are always zero.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from es_flipout.choices import Activation, Initialization

OUTPUT_GAIN = 0.01
"""Scale of the last layer's initial weights: a new policy starts near the middle of the action range."""

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@torch.no_grad()
def fill(weight: Tensor, init: Initialization, gain: float, generator: torch.Generator | None) -> None:
    """Overwrites a weight [J, ...], flattened to a matrix [J, rest], with initial values.

    Args:
        weight: the weight.
        init: "orthogonal", or "normc": rows of a Gaussian matrix, each scaled to norm 1.
        gain: factor of the result.
        generator: source of the values.
    """
    if init == "orthogonal":
        nn.init.orthogonal_(weight, gain=gain, generator=generator)
        return
    rows = weight.view(weight.shape[0], -1).normal_(generator=generator)
    rows.mul_(gain / rows.norm(dim=1, keepdim=True))


def hidden_gain(init: Initialization, activation: Activation) -> float:
    """Returns the gain of a layer before `activation`; always 1 for `normc`."""
    return 1.0 if init == "normc" or activation == "tanh" else math.sqrt(2.0)


def initialized(layer: Layer, init: Initialization, gain: float, generator: torch.Generator | None) -> Layer:
    """Returns the layer with initial weights and a bias of zeros."""
    fill(layer.weight, init, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
