"""The networks that are timed: fully connected, recurrent, convolutional; and each under dense weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.work import Layer

DenseForward = Callable[..., object]
"""One row under weights of its own: (weights by name, inputs without a row dimension) -> outputs."""


@dataclass(frozen=True)
class Model:
    """A network, and what is known of it.

    Attributes:
        name: for people.
        module: the network; forward takes tensors [N, *shape], one for each of `input_shapes`.
        input_shapes: shapes of what one row gets.
        layers: its weights, in order.
        dense: see `DenseForward`.
    """

    name: str
    module: nn.Module
    input_shapes: list[tuple[int, ...]]
    layers: list[Layer]
    dense: DenseForward

    @property
    def num_parameters(self) -> int:
        """Numbers that are searched."""
        return sum(layer.parameters for layer in self.layers)

    def inputs(self, rows: int, device: torch.device) -> list[Tensor]:
        """Returns standard normal inputs."""
        return [torch.randn(rows, *shape, device=device) for shape in self.input_shapes]


class MLP(nn.Sequential):
    """Linear layers with tanh between them."""

    row_wise = True

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers[:-1])


def mlp(sizes: Sequence[int]) -> Model:
    """Returns a fully connected network of these widths, inputs and outputs included."""
    module = MLP(sizes)
    layers = [Layer(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    name = f"MLP {'-'.join(map(str, sizes))}"
    return Model(name, module, [(sizes[0],)], layers, _functional(module))


class GRU(nn.Module):
    """A GRU cell and a linear output."""

    row_wise = True

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, width)
        self.output = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs [N, J] and the next state [N, width]."""
        state = self.cell(inputs, state)
        return self.output(state), state


def gru(inputs: int, width: int, outputs: int) -> Model:
    """Returns a recurrent network; a row gets an observation and a state."""
    layers = [Layer(inputs, 3 * width), Layer(width, 3 * width), Layer(width, outputs)]
    module = GRU(inputs, width, outputs)
    return Model(f"GRU {inputs}-{width}-{outputs}", module, [(inputs,), (width,)], layers, gru_by_hand)


def gru_by_hand(weights: Mapping[str, Tensor], inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `GRU` does, of operations that torch.func's vmap has a fast way for."""
    i_r, i_z, i_n = F.linear(inputs, weights["cell.weight_ih"], weights["cell.bias_ih"]).chunk(3)
    h_r, h_z, h_n = F.linear(state, weights["cell.weight_hh"], weights["cell.bias_hh"]).chunk(3)
    reset, update = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    new = torch.tanh(i_n + reset * h_n)
    state = new + update * (state - new)
    return F.linear(state, weights["output.weight"], weights["output.bias"]), state


class ConvNet(nn.Sequential):
    """Two 5x5 convolutions, each halved by max pooling, and two linear layers, for 28x28 images."""

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__(
            *(nn.Conv2d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(second * 7 * 7, width), nn.ReLU(), nn.Linear(width, 10)),
        )


def conv_net(scale: float = 1.0) -> Model:
    """Returns the flipout paper's network: 32 and 64 channels and a layer of 512, each times `scale`."""
    first, second, width = (max(1, round(scale * size)) for size in (32, 64, 512))
    layers = [
        Layer(1, first, kernel=25, places=28 * 28),
        Layer(first, second, kernel=25, places=14 * 14),
        Layer(second * 7 * 7, width),
        Layer(width, 10),
    ]
    module = ConvNet(first, second, width)
    name = f"ConvNet 5x5 {first}/{second}, {width}"
    return Model(name, module, [(1, 28, 28)], layers, _functional(module))


def _functional(module: nn.Module) -> DenseForward:
    """Returns the dense forward of a network of one input, by torch.func."""

    def run_one(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(module, dict(weights), inputs.unsqueeze(0))
        return outputs.squeeze(0)

    return run_one


def dense_forward(model: Model, inputs: Sequence[Tensor], max_bytes: int) -> Callable[[], None]:
    """Returns the forward of as many members as there are inputs, each with dense weights of its own.

    Args:
        model: the network; its parameters, all on one device, are the members' mean.
        inputs: what the rows get.
        max_bytes: memory for weights. A larger population runs in turns, over the same weights again.
    """
    num_members = len(inputs[0])
    chunk = max(1, min(num_members, max_bytes // (4 * model.num_parameters)))
    weights = {
        name: value.detach() + 0.05 * torch.randn(chunk, *value.shape, device=value.device)
        for name, value in model.module.named_parameters()
    }

    def run() -> None:
        for start in range(0, num_members, chunk):
            part = [x[start : start + chunk] for x in inputs]
            some = {name: value[: len(part[0])] for name, value in weights.items()}
            torch.func.vmap(model.dense)(some, *part)

    return run
