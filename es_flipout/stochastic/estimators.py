"""Estimators: how the examples of a mini-batch get their weights, given a distribution of the weights.

All have the same expected gradient. They differ in how the noise of two examples is related, and so in how
fast the variance of a mini-batch's gradient falls with its size N:

- "flipout": Δ_n = Δ ∘ (r_n s_nᵀ), one draw Δ for the batch and random signs for each example (the paper's
  equation 3): pseudo-independent, two matrix products in place of one. What examples still have in common,
  the magnitudes in Δ, limits large batches; K draws, for N / K examples each, divide that by K.
- "shared": one draw Δ for all examples.
- "independent": a draw for each example, written out: N times the memory.
- "local": draws what a fully connected layer computes instead of its weights (local reparametrization,
  Kingma, Salimans and Welling, 2015): independent, for one position per example.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from es_flipout.perturbations import FlipoutRows, ParameterNoise, UnsupportedOperationError
from es_flipout.perturbations.flipout import draw_signs
from es_flipout.perturbations.parameter_noise import DenseRows, aligned
from es_flipout.perturbations.row_groups import RowGroups
from es_flipout.stochastic.distributions import WeightDistribution

Estimator = Literal["flipout", "shared", "independent", "local"]


def check_estimator(estimator: str, distribution: WeightDistribution, num_bases: int) -> None:
    """Checks that there is such an estimator, with so many bases, and that it is exact for a distribution.

    Raises:
        ValueError: if not.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
    if num_bases < 1 or (num_bases > 1 and estimator != "flipout"):
        raise ValueError(f"num_bases must be >= 1, and 1 unless estimator is 'flipout', got {num_bases}")
    if estimator == "flipout" and not distribution.is_symmetric:
        raise ValueError(
            f"estimator 'flipout' requires noise that is symmetric about its mean, and {distribution} is not "
            "(DropConnect is for p=0.5): use estimator 'independent' or 'shared'"
        )
    if estimator == "local" and not distribution.is_gaussian:
        raise ValueError(
            f"estimator 'local' is exact for Gaussian noise only, not for {distribution}: use 'flipout'"
        )


def draw_shared(distribution: WeightDistribution, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one draw of the noise of a parameter, of its shape."""
    return scale * distribution.unit(scale.shape, scale.dtype, generator)


def draw_noise(
    estimator: Estimator,
    distribution: WeightDistribution,
    name: str,
    scale: Tensor,
    num_examples: int,
    num_bases: int,
    generator: torch.Generator,
) -> ParameterNoise:
    """Returns a draw of the noise of a parameter for N examples, each with its own.

    Parameters of fewer than two dimensions get a draw for each example from every estimator but "shared".

    Args:
        estimator: not "shared".
        distribution: of the weights.
        name: the parameter's.
        scale: `distribution.scale` of the parameter, [*shape].
        num_examples: N.
        num_bases: K of "flipout"; row n uses base n * K // N.
        generator: on the parameter's device.
    """
    if estimator == "independent" or scale.ndim < 2:
        units = distribution.unit((num_examples, *scale.shape), scale.dtype, generator)
        return DenseRows(scale * units)
    if estimator == "local":
        unit = distribution.unit((num_examples, scale.shape[0]), scale.dtype, generator)
        return LocalRows(name, scale, unit)
    count = max(min(num_bases, num_examples), 1)
    bases = scale * distribution.unit((count, *scale.shape), scale.dtype, generator)
    groups = None
    if count > 1:
        rows = torch.arange(num_examples, device=scale.device)
        groups = RowGroups(rows * count // num_examples, count, grouped=True)
    outputs, inputs = scale.shape[:2]
    signs = draw_signs((num_examples, outputs + inputs), scale.dtype, generator)
    return FlipoutRows(bases, signs[:, :outputs], signs[:, outputs:], groups)


class LocalRows(ParameterNoise):
    """The noise of a weight through what N examples make of it: their outputs, which are drawn once.

    For x of one example, x Δᵀ is Gaussian with independent entries of variance x² (scale²)ᵀ. Outputs of a
    second use, or at a second position, would have to be drawn jointly with the first, so they are refused.
    """

    def __init__(self, name: str, scale: Tensor, unit: Tensor) -> None:
        """Takes the parameter's name, its scale [J, I], and standard normal noise [N, J]."""
        self._name, self._scale, self._unit = name, scale, unit
        self._is_used = False

    @override
    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        if self._is_used or inputs.shape[1:-1].numel() != 1:
            raise self._refusal()
        self._is_used = True
        # Squares of small numbers are 0 in half precision.
        dtype = torch.promote_types(self._scale.dtype, torch.float32)
        with torch.autocast(inputs.device.type, enabled=False):
            variance = F.linear(inputs.to(dtype).square(), self._scale.to(dtype).square())
        # The root has no gradient at 0, where all inputs are.
        std = variance.clamp_min(torch.finfo(dtype).tiny).sqrt()
        return outputs + (std * aligned(self._unit, std.ndim)).to(outputs.dtype)

    @override
    def dense(self) -> Tensor:
        raise self._refusal()

    def _refusal(self) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            "estimator 'local' draws the outputs of a fully connected layer: F.linear, called once per "
            f"forward, with one vector per example. {self._name!r} {list(self._scale.shape)} is used in "
            "another way: use estimator 'flipout', or exclude the parameter"
        )
