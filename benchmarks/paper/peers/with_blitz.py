"""blitz-bayesian-pytorch: BayesianLinear, BayesianConv2d and BayesianLSTM inside its wrapper Flipout.

KL is blitz's own estimate from the weights drawn. A normal prior instead of the default mixture halves its
work.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from blitz.losses import kl_divergence_from_nn
from blitz.modules import BayesianConv2d, BayesianLinear, BayesianLSTM
from blitz.utils import Flipout
from torch import Tensor, nn
from torch.distributions import Normal

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
PACKAGES = ["blitz-bayesian-pytorch", "torch"]
RHO, NO_NOISE = math.log(math.expm1(SIGMA)), -60.0
"""Standard deviation is softplus(rho)."""
Linear, Conv, LSTM = Flipout(BayesianLinear), Flipout(BayesianConv2d), Flipout(BayesianLSTM)


def step(network: str, batch: int):
    """Returns a step of a network."""
    prior = {"prior_dist": Normal(0.0, 1.0)}
    if network == "fc":
        sizes = networks.FC
        layers = [Linear(*pair, **prior) for pair in pairwise(sizes)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    elif network == "conv":
        one, two, three = networks.CHANNELS
        size = networks.KERNEL
        kind = {"kernel_size": (size, size), "padding": size // 2, **prior}
        model = nn.Sequential(
            *(Conv(one, two, **kind), nn.ReLU(), nn.MaxPool2d(2)),
            *(Conv(two, three, **kind), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), Linear(networks.FLAT, networks.WIDTH, **prior), nn.ReLU()),
            Linear(networks.WIDTH, networks.CLASSES, **prior),
        )
    else:
        model = LSTM(*networks.LSTM, **prior)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(x)
        return outputs[0] if network == "lstm" else outputs, kl_divergence_from_nn(model)

    return make_step(network, batch, model.parameters(), evaluate)


def _linear(weight: Array) -> nn.Module:
    with float64():
        layer = Linear(weight.shape[1], weight.shape[0])
    _set(layer, "weight", weight)
    _set(layer, "bias", 0.0, NO_NOISE)
    return layer


def _set(layer: nn.Module, name: str, mean: Array | float, rho: float = RHO) -> None:
    assign(getattr(layer, f"{name}_mu"), mean)
    assign(getattr(layer, f"{name}_rho"), rho)


def linear(weight: Array) -> Forward:
    """Returns a fully connected layer, called with all positions at once."""
    return of_arrays(_linear(weight))


def reused(weight: Array) -> Forward:
    """Returns the same layer, called once per position."""
    return of_arrays(per_position(_linear(weight)))


def conv(weight: Array) -> Forward:
    """Returns a convolution."""
    outputs, inputs, *size = weight.shape
    with float64():
        layer = Conv(inputs, outputs, kernel_size=tuple(size))
    _set(layer, "weight", weight)
    _set(layer, "bias", 0.0, NO_NOISE)
    return of_arrays(layer)


def lstm(weight_ih: Array, weight_hh: Array, bias: Array) -> Forward:
    """Returns an LSTM, whose weights blitz keeps transposed."""
    with float64():
        layer = LSTM(weight_ih.shape[1], weight_hh.shape[1])
    _set(layer, "weight_ih", weight_ih.T)
    _set(layer, "weight_hh", weight_hh.T)
    _set(layer, "bias", bias, NO_NOISE)

    def run(x: Tensor) -> Tensor:
        state = torch.zeros(len(x), weight_hh.shape[1], dtype=x.dtype)
        return layer(x, (state, state))[0]

    return of_arrays(run)


LAYERS = {"linear": linear, "reused": reused, "conv": conv, "lstm": lstm}
