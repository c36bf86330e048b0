"""Members of a small MLP side by side, their numbers laid out as the compiled forward wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from es_flipout.perturbations import FlipoutRows, LowRankRows, ParameterNoise
from es_flipout.policies import BoxActions, MLPPolicy, is_plain_mlp
from es_flipout.policies.activations import ELU, SiLU
from es_flipout.population import Population
from es_flipout.rollout import forward_kernels as kernels

MAX_WEIGHTS = 2**15
"""Weights of a policy beyond which one matrix product for all rows is faster than row by row."""
MAX_BYTES = 2**26
"""Memory that the noise of all members may take, so that rows are only copied when they change members."""

Array = NDArray[Any]
Ints = NDArray[np.int64]

_ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Tanh: kernels.TANH,
    nn.ReLU: kernels.RELU,
    ELU: kernels.ELU,
    SiLU: kernels.SILU,
}


def is_fusible(policy: nn.Module) -> bool:
    """Returns whether `FusedRows` can run a policy, and faster than torch can."""
    return (
        is_plain_mlp(policy)
        and isinstance(policy, MLPPolicy)
        and isinstance(policy.head, BoxActions)
        and all(each.device.type == "cpu" for each in policy.parameters())
        and {each.dtype for each in policy.parameters()} in ({torch.float32}, {torch.float64})
        and sum(layer.weight.numel() for layer in _linears(policy).values()) <= MAX_WEIGHTS
    )


class FusedRows:
    """N rows of a policy, each with the weights of a member of a population; made for one generation."""

    def __init__(self, population: Population, num_rows: int) -> None:
        """Lays out the center, and the noise of all members if that is not much.

        Args:
            population: whose policy `is_fusible`.
            num_rows: N.
        """
        policy, noise = population.policy, population.noise
        assert isinstance(policy, MLPPolicy)
        self._population = population
        self._layers = _layers(policy)
        dtype = self._layers[0].dtype
        weights = _joined([part for layer in self._layers for part in layer.center()])
        first = torch.zeros(1, dtype=torch.int64)
        of_weights = {each.weight: noise.rows(first, 1.0).get(each.weight) for each in self._layers}
        self._kind, self._rank = _kind(of_weights.values())
        bases = np.zeros_like(weights)
        if self._kind == kernels.FLIPOUT:
            parts = [part for each in self._layers for part in each.bases(of_weights[each.weight])]
            bases = _joined(parts, noise.num_bases)
        self._settings = (weights, bases, *_settings(policy, self._layers))
        width = self._laid_out(first)[0].shape[1]
        self._noise = np.zeros((num_rows, width), dtype)
        self._base_of_row = np.zeros(num_rows, np.int64)
        self._of_member: tuple[Array, Ints] | None = None
        if population.size * width * dtype.itemsize <= MAX_BYTES:
            self._of_member = self._laid_out(torch.arange(population.size))

    def assign(self, rows: Ints, members: Ints) -> None:
        """Hands rows, [M], over to members, [M]."""
        if self._of_member is None:
            noise, bases = self._laid_out(torch.from_numpy(members))
        else:
            noise, bases = (values[members] for values in self._of_member)
        self._noise[rows], self._base_of_row[rows] = noise, bases

    def bind(
        self, live: Array, observations: Array, moments: Array, actions: Array, controls: Array
    ) -> Callable[[], None]:
        """Returns what turns observations into actions; see `forward_kernels.act` for the arrays."""
        rows = self._base_of_row, self._noise, self._kind, self._rank
        return partial(kernels.act, live, observations, moments, actions, controls, *rows, *self._settings)

    def _laid_out(self, members: Tensor) -> tuple[Array, Ints]:
        """Returns what `run_layer` needs of members [M], [M, ...], and their bases, [M]."""
        noise = self._population.noise.rows(members, self._population.sigma)
        parts = [
            part
            for layer in self._layers
            for part in layer.noise(noise, self._kind, self._rank, len(members))
        ]
        return _joined(parts, len(members)), self._population.noise.base_of(members).numpy()


@dataclass(frozen=True)
class _Layer:
    """A linear map, with its widths padded.

    Attributes:
        weight: name of its weight.
        bias: of its bias.
        ins: I.
        outs: J.
    """

    weight: str
    bias: str
    ins: int
    outs: int
    linear: nn.Linear

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all numbers."""
        return self.linear.weight.detach().numpy().dtype

    def center(self) -> list[Array]:
        """Returns weight and bias, [1, ...]."""
        linear = self.linear
        return [
            self._matrix(linear.weight.detach()[None]),
            self._vector(linear.bias.detach()[None], self.outs),
        ]

    def bases(self, noise: ParameterNoise | None) -> list[Array]:
        """Returns the bases of the weight, [K, ...], with room for the bias."""
        bases = noise.bases if isinstance(noise, FlipoutRows) else self.linear.weight.new_zeros(1, 0, 0)
        return [self._matrix(bases), np.zeros((len(bases), self.outs), self.dtype)]

    def noise(self, of: Mapping[str, ParameterNoise], kind: int, rank: int, count: int) -> list[Array]:
        """Returns the noise of M = `count` rows, [M, ...]: what is not perturbed has zeros."""
        weight, bias = of.get(self.weight), of.get(self.bias)
        none = self.linear.weight.new_zeros(count, 0)
        if kind == kernels.FLIPOUT:
            r, s = (weight.signs_0, weight.signs_1) if isinstance(weight, FlipoutRows) else (none, none)
            parts = [self._vector(s, self.ins), self._vector(r, self.outs)]
        elif kind == kernels.LOW_RANK:
            none_of_rank = none.new_zeros(count, rank, 0)
            left, right = (
                (weight.left, weight.right)
                if isinstance(weight, LowRankRows)
                else (none_of_rank, none_of_rank)
            )
            parts = [self._vector(right, self.ins), self._vector(left, self.outs)]
        else:
            parts = [self._matrix(none.new_zeros(count, 0, 0) if weight is None else weight.dense())]
        return [*parts, self._vector(none if bias is None else bias.dense(), self.outs)]

    def _matrix(self, weights: Tensor) -> Array:
        """Returns weights, [M, J, I], transposed and padded."""
        padded = weights.new_zeros(len(weights), self.ins, self.outs)
        padded[:, : weights.shape[2], : weights.shape[1]] = weights.mT
        return padded.flatten(1).numpy()

    @staticmethod
    def _vector(values: Tensor, width: int) -> Array:
        """Returns values, [M, ..., J], padded."""
        return torch.nn.functional.pad(values, (0, width - values.shape[-1])).flatten(1).numpy()


def _linears(policy: MLPPolicy) -> dict[str, nn.Linear]:
    return {f"network.{i}": m for i, m in enumerate(policy.network) if isinstance(m, nn.Linear)}


def _layers(policy: MLPPolicy) -> list[_Layer]:
    layers: list[_Layer] = []
    for name, linear in _linears(policy).items():
        ins = layers[-1].outs if layers else linear.in_features
        outs = -(-linear.out_features // kernels.LANES) * kernels.LANES
        layers.append(_Layer(f"{name}.weight", f"{name}.bias", ins, outs, linear))
    return layers


def _joined(parts: list[Array], count: int = 1) -> Array:
    """Returns parts, [M, ...] or [1, ...] each, side by side."""
    return np.concatenate([np.broadcast_to(part, (count, part.shape[1])) for part in parts], axis=1)


def _kind(of_weights: Any) -> tuple[int, int]:
    """Returns the kind of noise that weights have, and its rank."""
    for noise in of_weights:
        if isinstance(noise, FlipoutRows):
            return kernels.FLIPOUT, 0
        if isinstance(noise, LowRankRows):
            return kernels.LOW_RANK, noise.left.shape[1]
    return kernels.DENSE, 0


def _settings(policy: MLPPolicy, layers: list[_Layer]) -> tuple[Any, ...]:
    """Returns the last arguments of `forward_kernels.act`, the same for all rows."""
    dtype = layers[0].linear.weight.dtype
    number = layers[0].dtype.type
    sizes = np.array([layers[0].ins, *(layer.outs for layer in layers)])
    if policy.normalizer is None:
        size = layers[0].ins
        mean, scale, clip = np.zeros(size, number), np.ones(size, number), number(np.inf)
    else:
        mean, scale = (each.numpy() for each in policy.normalizer.standardizer(dtype))
        clip = number(policy.normalizer.clip)
    activation = _ACTIVATIONS[type(policy.network[1])] if len(layers) > 1 else kernels.TANH
    head = policy.head
    assert isinstance(head, BoxActions)
    low, high = head.low.numpy(), head.high.numpy()
    rescales = head.bounds == "rescale"
    middle, reach = (head.middle.numpy(), head.reach.numpy()) if rescales else (low, high)
    return mean, scale, clip, sizes, activation, low, high, middle, reach, rescales
