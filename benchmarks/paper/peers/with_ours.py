"""es_flipout.stochastic: torch's own modules under `perturbed`, LearnedGaussian, flipout."""

from __future__ import annotations

from itertools import pairwise

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
from benchmarks.speed.models import conv_net
from es_flipout.stochastic import LearnedGaussian, perturbed

__all__ = ["LAYERS", "PACKAGES", "set_seed", "set_threads", "step"]
PACKAGES = ["es-flipout", "torch"]
LSTM_DIMS = (0, (1, 1))
"""Batch dimensions of nn.LSTM's outputs (y, (h, c))."""


def step(network: str, batch: int):
    """Returns a step of a network."""
    dims = LSTM_DIMS if network == "lstm" else 0
    noisy = perturbed(_network(network), LearnedGaussian(initial_std=SIGMA), out_dims=dims)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = noisy(x)
        return outputs[0] if network == "lstm" else outputs, noisy.kl(1.0)

    return make_step(network, batch, noisy.parameters(), evaluate)


def _network(network: str) -> nn.Module:
    if network == "fc":
        sizes = networks.FC
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    if network == "conv":
        return conv_net().module
    return nn.LSTM(*networks.LSTM, batch_first=True)


def _noisy(layer: nn.Module, **dims: object) -> nn.Module:
    return perturbed(layer, LearnedGaussian(initial_std=SIGMA), exclude="*bias*", **dims)


def _linear(weight: Array) -> nn.Linear:
    with float64():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    assign(layer.weight, weight)
    return layer


def linear(weight: Array) -> Forward:
    """Returns a fully connected layer, called with all positions at once."""
    return of_arrays(_noisy(_linear(weight)))


class Reused(nn.Module):
    """A module that calls its one layer once per position."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs [N, P, J] of inputs [N, P, I]."""
        return per_position(self.layer)(x)


def reused(weight: Array) -> Forward:
    """Returns a module that reuses a layer."""
    return of_arrays(_noisy(Reused(_linear(weight))))


def conv(weight: Array) -> Forward:
    """Returns a convolution."""
    outputs, inputs, size, _ = weight.shape
    with float64():
        layer = nn.Conv2d(inputs, outputs, size, bias=False)
    assign(layer.weight, weight)
    return of_arrays(_noisy(layer))


def lstm(weight_ih: Array, weight_hh: Array, bias: Array) -> Forward:
    """Returns an LSTM; of its two biases the second is zero."""
    with float64():
        layer = nn.LSTM(weight_ih.shape[1], weight_hh.shape[1], batch_first=True)
    means = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias, "bias_hh_l0": 0.0}
    for name, mean in means.items():
        assign(getattr(layer, name), mean)
    noisy = _noisy(layer, out_dims=LSTM_DIMS)
    return of_arrays(lambda x: noisy(x)[0])


LAYERS = {"linear": linear, "reused": reused, "conv": conv, "lstm": lstm}
