"""How much work is in an operation on a policy: useful FLOPs, and the least bytes that it must move.

A layer is a weight of I inputs by J outputs (features, or the channels of a convolution) with k numbers for
each such pair (1, or the kernel's area), applied at q places of each row's input (1, or the pixels of the
result), and a bias [J]. It has w = I J k weights. P rows, each with a member of its own, K bases, rank r, D
drawn directions (P / 2 of antithetic pairs).

    forward             FLOPs                                 bytes
    unperturbed         2 P w q                               4 (w + J + P q (I + J))
      + flipout         2 P w q                               4 (K w + P (I + J) + P J)
      + low rank        2 P q r (I k + J)                     4 (P r (I k + J) + P J)
      + independent     2 P w q                               4 P (w + J)
    dense               2 P w q                               4 (P (w + J) + P q (I + J))

    gradient            FLOPs                                 bytes read, then 4 (w + J) written
    flipout             2 D I J + 2 D J                       D (I + J) + 4 (K w + D J)
    low rank            2 D r J I k + 2 D J                   4 D (r (I k + J) + J)
    independent         2 D (w + J)                           4 D (w + J)

A multiplication and an addition are 2 FLOPs. Only products of matrices and convolutions count, at padded
borders too, as torch's flop counter has it (and the sum over independent noise, which is one in all but
name): no signs, biases or activations. Every input is read once and every result is written once, in float32
(flipout's signs in a byte each, as a generation stores them), each layer by itself: what caches spare between
layers makes the bytes/s more than the memory's, what passes over intermediate results cost makes them fewer.
`ask` writes what the gradient reads, and then a row's share for every row: only the former counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """Useful FLOPs, and least bytes moved."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        """Returns the work of both."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def total(parts: Iterable[Work]) -> Work:
    """Returns the work of all parts."""
    return sum(parts, Work(0, 0))


@dataclass(frozen=True)
class Layer:
    """A linear map or a convolution with a bias: I, J, k and q as above."""

    inputs: int
    outputs: int
    kernel: int = 1
    places: int = 1

    @property
    def weights(self) -> int:
        """Numbers in the weight, w."""
        return self.inputs * self.outputs * self.kernel

    @property
    def parameters(self) -> int:
        """Numbers in weight and bias."""
        return self.weights + self.outputs

    @property
    def row(self) -> int:
        """Numbers that go in and come out, of one row."""
        return self.places * (self.inputs + self.outputs)

    def unperturbed(self, rows: int) -> Work:
        """Work of P rows under the same weights."""
        return Work(2 * rows * self.weights * self.places, 4 * (self.parameters + rows * self.row))

    def dense(self, rows: int) -> Work:
        """Work of P rows, each under weights of its own."""
        return Work(2 * rows * self.weights * self.places, 4 * rows * (self.parameters + self.row))


class NoiseWork(Protocol):
    """The work that a noise family makes of a layer."""

    def added(self, layer: Layer, rows: int) -> Work:
        """Work that the noise of P rows adds to an unperturbed forward."""

    def gradient(self, layer: Layer, directions: int) -> Work:
        """Work of the gradient estimate."""

    def ask(self, layer: Layer, directions: int) -> Work:
        """Work of a draw: the bytes that are kept."""


@dataclass(frozen=True)
class FlipoutWork:
    """Flipout with K bases."""

    num_bases: int

    def added(self, layer: Layer, rows: int) -> Work:
        """See `NoiseWork.added`."""
        signs = rows * (layer.inputs + layer.outputs)
        numbers = self.num_bases * layer.weights + signs + rows * layer.outputs
        return Work(2 * rows * layer.weights * layer.places, 4 * numbers)

    def gradient(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.gradient`."""
        flops = 2 * directions * layer.outputs * (layer.inputs + 1)
        return Work(flops, self.ask(layer, directions).bytes + 4 * layer.parameters)

    def ask(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.ask`."""
        signs = directions * (layer.inputs + layer.outputs)
        return Work(0, signs + 4 * (self.num_bases * layer.weights + directions * layer.outputs))


@dataclass(frozen=True)
class LowRankWork:
    """Low-rank noise."""

    rank: int

    def _numbers(self, layer: Layer) -> int:
        return self.rank * (layer.inputs * layer.kernel + layer.outputs)

    def added(self, layer: Layer, rows: int) -> Work:
        """See `NoiseWork.added`."""
        numbers = self._numbers(layer)
        return Work(2 * rows * layer.places * numbers, 4 * rows * (numbers + layer.outputs))

    def gradient(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.gradient`."""
        flops = 2 * directions * (self.rank * layer.weights + layer.outputs)
        return Work(flops, self.ask(layer, directions).bytes + 4 * layer.parameters)

    def ask(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.ask`."""
        return Work(0, 4 * directions * (self._numbers(layer) + layer.outputs))


@dataclass(frozen=True)
class IndependentWork:
    """Dense noise per member."""

    def added(self, layer: Layer, rows: int) -> Work:
        """See `NoiseWork.added`."""
        return Work(2 * rows * layer.weights * layer.places, 4 * rows * layer.parameters)

    def gradient(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.gradient`."""
        return Work(2 * directions * layer.parameters, 4 * (directions + 1) * layer.parameters)

    def ask(self, layer: Layer, directions: int) -> Work:
        """See `NoiseWork.ask`."""
        return Work(0, 4 * directions * layer.parameters)
