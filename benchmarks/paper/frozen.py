"""The networks of figure 1: trained with flipout up to a given accuracy on the training set, then frozen.

Noise is on the measured layers, in training as in the measurement: multiplicative Gaussian of deviation 1, as
in the figure, or DropConnect, W/2 ± W/2. The accuracy is that of the mean weights, on examples of the
training set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper import images, models, text
from benchmarks.paper.lstm_loop import CharacterModel
from es_flipout.stochastic import DropConnect, MultiplicativeGaussian, perturbed

Noise = MultiplicativeGaussian | DropConnect
NOISE: dict[str, Noise] = {"gaussian": MultiplicativeGaussian(1.0), "dropconnect": DropConnect(0.5)}
BATCH, CHECK_EVERY, CHECKED = 128, 5, 2048
"""Examples per training step, steps between looks at the accuracy, examples of a look."""


@dataclass
class Network:
    """A network and its training set.

    Attributes:
        module: the network, x [B, ...] to logits [B, classes] or [B, T, classes].
        x: inputs of all examples, [M, ...].
        y: int64 classes, [M] or [M, T].
        layers: names of the measured weights, by name of the layer.
        noise: on these weights.
        facts: what the document says about the network.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    layers: dict[str, str]
    noise: Noise = NOISE["gaussian"]
    facts: dict[str, Any] = field(default_factory=dict)

    def perturbed(self, estimator: str, num_bases: int = 1) -> nn.Module:
        """Returns the network with noise on the measured layers."""
        include = [*self.layers.values()]
        return perturbed(self.module, self.noise, include=include, estimator=estimator, num_bases=num_bases)

    def draw(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Draws examples independently of each other: x [*shape, ...] and y."""
        index = torch.randint(len(self.y), shape, device=self.y.device)
        return self.x[index], self.y[index]


def fc(options: argparse.Namespace) -> Network:
    """Returns the fully connected network, of which the first and the last layer are measured."""
    data = images.load(options.images, options.data).to(options.device)
    module = models.fully_connected(data.train_x[0].numel(), options.hidden)
    return _network("FC", module, data.train_x, data.train_y, nn.Linear)


def convolutional(options: argparse.Namespace) -> Network:
    """Returns the ConvNet, of which the first and the last convolution are measured."""
    data = images.load(options.images, options.data).to(options.device)
    module = models.convnet(data.train_x.shape[-1], options.channels, options.hidden[-1])
    return _network("ConvNet", module, data.train_x, data.train_y, nn.Conv2d)


def lstm(options: argparse.Namespace) -> Network:
    """Returns the character model; an example is a piece of the text, from anywhere."""
    data = text.load_characters(data=options.text)
    pieces = data.train.to(options.device).unfold(0, options.length + 1, 1)  # a view [M, T + 1]
    module = CharacterModel(len(data.vocabulary), options.lstm_hidden)
    layers = {"LSTM hidden-to-hidden": "lstm.weight_hh"}
    return Network(module, pieces[:, :-1], pieces[:, 1:], layers)


def _network(kind: str, module: nn.Module, x: Tensor, y: Tensor, measured: type[nn.Module]) -> Network:
    own = [f"{name}.weight" for name, each in module.named_modules() if isinstance(each, measured)]
    return Network(module, x, y, {f"{kind} first layer": own[0], f"{kind} last layer": own[-1]})


NETWORKS: dict[str, Callable[[argparse.Namespace], Network]] = {
    "fc": fc,
    "conv": convolutional,
    "lstm": lstm,
}


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the mean cross-entropy over examples, and time steps if any."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def trained(name: str, options: argparse.Namespace) -> Network:
    """Makes a network and trains it with flipout up to the accuracy that is wanted, or as far as it comes."""
    torch.manual_seed(options.seed)
    network = replace(NETWORKS[name](options), noise=NOISE[options.noise])
    module = network.module.to(options.device)
    noisy = network.perturbed("flipout")
    optimizer = torch.optim.Adam(module.parameters(), lr=options.lr)
    wanted = options.lstm_accuracy if name == "lstm" else options.accuracy
    looked_at = network.draw(CHECKED)
    steps = 0
    while (accuracy := _accuracy(noisy, *looked_at)) < wanted and steps < options.max_steps:
        for _ in range(CHECK_EVERY):
            x, y = network.draw(BATCH)
            optimizer.zero_grad()
            loss_of(noisy(x), y).backward()
            optimizer.step()
        steps += CHECK_EVERY
    sizes = {label: list(module.get_parameter(each).shape) for label, each in network.layers.items()}
    network.facts |= {"training accuracy": accuracy, "training steps": steps, "layers": sizes}
    return network


@torch.no_grad()
def _accuracy(noisy: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the accuracy of the mean weights, and leaves the network in training mode."""
    noisy.eval()
    predicted = [noisy(part).argmax(dim=-1) for part in x.split(512)]
    noisy.train()
    return float((torch.cat(predicted) == y).double().mean())
