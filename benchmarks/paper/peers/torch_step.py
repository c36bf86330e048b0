"""What the libraries that run on torch share: making a step, calling a layer with arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.peers.check import Array, Forward
from benchmarks.paper.peers.networks import CLASSES, INPUT_SHAPES, NUM_DATA

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Inputs -> outputs and KL."""


def set_threads(count: int) -> None:
    """Lets torch use so many threads."""
    torch.set_num_threads(count)


def set_seed(seed: int) -> None:
    """Seeds torch's default generator."""
    torch.manual_seed(seed)


def make_step(network: str, batch: int, parameters: Iterable[nn.Parameter], evaluate: Evaluate):
    """Returns what makes one step on random examples; see `networks`."""
    parameters = list(parameters)
    x = torch.randn(batch, *INPUT_SHAPES[network])
    labels = torch.randint(CLASSES, (batch,))

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        outputs, kl = evaluate(x)
        error = outputs.square().mean() if network == "lstm" else F.cross_entropy(outputs, labels)
        (error + kl / NUM_DATA).backward()

    return step


def of_arrays(layer: Callable[[Tensor], Tensor]) -> Forward:
    """Returns a layer that takes and returns float64 arrays."""

    def forward(x: Array) -> Array:
        with torch.no_grad():
            return layer(torch.from_numpy(x)).numpy()

    return forward


@contextmanager
def float64() -> Iterator[None]:
    """Makes layers of float64 inside.

    `double()` would not do: blitz has each mean twice, in one storage, and `double()` parts them.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def per_position(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns what calls a layer once per position of inputs [N, P, I], all in one forward."""
    return lambda x: torch.stack([layer(row) for row in x.unbind(1)], dim=1)


def assign(parameter: Tensor, value: object) -> None:
    """Sets a parameter to an array or a number."""
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))
