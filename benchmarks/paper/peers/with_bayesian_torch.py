"""bayesian-torch (Intel Labs): LinearFlipout, Conv2dFlipout, LSTMFlipout, each returning outputs and KL."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from bayesian_torch.layers import Conv2dFlipout, LinearFlipout, LSTMFlipout
from torch import Tensor, nn

from benchmarks.paper.peers import networks
from benchmarks.paper.peers.check import SIGMA, Array, Forward
from benchmarks.paper.peers.torch_step import (
    assign,
    float64,
    make_step,
    of_arrays,
    per_position,
    set_seed,
    set_threads,
)

__all__ = ["LAYERS", "PACKAGES", "set_seed", "set_threads", "step"]
PACKAGES = ["bayesian-torch", "torch"]
RHO, NO_NOISE = math.log(math.expm1(SIGMA)), -60.0
"""Standard deviation is softplus(rho)."""


class Chain(nn.ModuleList):
    """Layers one after the other, with the sum of their KL."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs and KL."""
        total = torch.zeros(())
        for layer in self:
            x = layer(x)
            if isinstance(x, tuple):
                x, kl = x[0], x[-1]
                total = total + kl
        return x, total


def step(network: str, batch: int):
    """Returns a step of a network."""
    if network == "fc":
        sizes = networks.FC
        layers = [LinearFlipout(*pair) for pair in pairwise(sizes)]
        model = Chain([layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]])
    elif network == "conv":
        one, two, three = networks.CHANNELS
        size = networks.KERNEL
        model = Chain(
            [
                *(Conv2dFlipout(one, two, size, padding=size // 2), nn.ReLU(), nn.MaxPool2d(2)),
                *(Conv2dFlipout(two, three, size, padding=size // 2), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), LinearFlipout(networks.FLAT, networks.WIDTH), nn.ReLU()),
                LinearFlipout(networks.WIDTH, networks.CLASSES),
            ]
        )
    else:
        model = Chain([LSTMFlipout(*networks.LSTM)])
    return make_step(network, batch, model.parameters(), model)


def _linear(weight: Array) -> LinearFlipout:
    with float64():
        layer = LinearFlipout(weight.shape[1], weight.shape[0], bias=False)
    assign(layer.mu_weight, weight)
    assign(layer.rho_weight, RHO)
    return layer


def linear(weight: Array) -> Forward:
    """Returns a fully connected layer, called with all positions at once."""
    layer = _linear(weight)
    return of_arrays(lambda x: layer(x)[0])


def reused(weight: Array) -> Forward:
    """Returns the same layer, called once per position."""
    layer = _linear(weight)
    return of_arrays(per_position(lambda x: layer(x)[0]))


def conv(weight: Array) -> Forward:
    """Returns a convolution."""
    outputs, inputs, size, _ = weight.shape
    with float64():
        layer = Conv2dFlipout(inputs, outputs, size, bias=False)
    assign(layer.mu_kernel, weight)
    assign(layer.rho_kernel, RHO)
    return of_arrays(lambda x: layer(x)[0])


def lstm(weight_ih: Array, weight_hh: Array, bias: Array) -> Forward:
    """Returns an LSTM; of its two biases the second is zero."""
    with float64():
        layer = LSTMFlipout(weight_ih.shape[1], weight_hh.shape[1])
    for part, weight, mean in ((layer.ih, weight_ih, bias), (layer.hh, weight_hh, 0.0)):
        assign(part.mu_weight, weight)
        assign(part.rho_weight, RHO)
        assign(part.mu_bias, mean)
        assign(part.rho_bias, NO_NOISE)

    def run(x: Tensor) -> Tensor:
        state = torch.zeros(len(x), weight_hh.shape[1], dtype=x.dtype)
        return layer(x, (state, state))[0]

    return of_arrays(run)


LAYERS = {"linear": linear, "reused": reused, "conv": conv, "lstm": lstm}
