"""Is a library's flipout layer a weight perturbation? Told from outputs alone.

A layer that is linear in its weights maps the features φ[n, p] of example n at position p (the input at a
time step, the patch under a kernel) to y[n, p] = φ[n, p] W_n. If one draw of weights W_n is behind all
positions of an example, least squares finds it and nothing remains:

    residual = min over W_n of ‖y[n] - φ[n] W_n‖ / ‖y[n] - φ[n] W̄‖       (W̄: the mean weights)

is 0, up to rounding. There are more positions than features, so noise drawn anew at every position leaves
most of the perturbation unexplained: about sqrt(1 - features / positions), 0.8 to 0.9 here.

An LSTM becomes linear by its biases: with input and output gates open (sigmoid(40) = 1) and the forget gate
closed, h_t = tanh(tanh(z_t)) with z_t = W x_t + U h_{t-1} + b, so z_t = atanh(atanh(h_t)).

Nothing but NumPy is imported: the same code runs in the environment of every library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = Any
"""numpy.ndarray of float64."""
Forward = Callable[[Array], Array]
"""One forward of a layer in training: inputs of a batch -> outputs, with a new draw of the weights."""

SIGMA = 0.05
"""Standard deviation of every weight, biases excepted: these have none."""
EXAMPLES, POSITIONS, CALLS = 8, 24, 12
INPUTS, OUTPUTS = 3, 4
KERNEL, IMAGE = 3, 10
GATE = 40.0
"""Bias of an open gate; minus that of a closed one."""


@dataclass(frozen=True)
class Case:
    """A layer, what it is given, and how its outputs are linear in its weights.

    Attributes:
        weights: means, in the layout of torch.nn: what a library makes its layer of.
        inputs: of a batch; [N, T, I], or images [N, C, H, W].
        mean: W̄ [K, J]: what weights that do not vary would be found to be.
        linear: (inputs, outputs) -> features [N, P, K] and y [N, P, J].
    """

    weights: Mapping[str, Array]
    inputs: Array
    mean: Array
    linear: Callable[[Array, Array], tuple[Array, Array]]


def cases(seed: int) -> dict[str, Case]:
    """Returns the cases by name: `reused` is the layer of `linear`, called CALLS times per forward."""
    rng = np.random.default_rng(seed)
    w = 0.1 * rng.standard_normal((OUTPUTS, INPUTS))
    x = rng.standard_normal((EXAMPLES, POSITIONS, INPUTS))
    linear = Case({"weight": w}, x, w.T, lambda x, y: (x, y))
    k = 0.1 * rng.standard_normal((OUTPUTS, INPUTS, KERNEL, KERNEL))
    images = rng.standard_normal((EXAMPLES, INPUTS, IMAGE, IMAGE))
    conv = Case({"weight": k}, images, k.reshape(OUTPUTS, -1).T, _patches)
    return {
        "linear": linear,
        "reused": replace(linear, inputs=x[:, :CALLS]),
        "conv": conv,
        "lstm": _lstm(rng),
    }


def _patches(images: Array, outputs: Array) -> tuple[Array, Array]:
    """Returns the patches [N, P, C * 9] under the kernel, and outputs [N, J, H', W'] as [N, P, J]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (KERNEL, KERNEL), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5)
    flat = (len(images), patches.shape[1] * patches.shape[2], -1)
    return patches.reshape(flat), outputs.transpose(0, 2, 3, 1).reshape(flat)


def _lstm(rng: np.random.Generator) -> Case:
    """Returns an LSTM, gates in torch's order (i, f, g, o), that is linear in the weights of g."""
    w_ih = 0.1 * rng.standard_normal((4 * OUTPUTS, INPUTS))
    w_hh = 0.1 * rng.standard_normal((4 * OUTPUTS, OUTPUTS))
    bias = np.repeat([GATE, -GATE, 0.1, GATE], OUTPUTS)
    cell = slice(2 * OUTPUTS, 3 * OUTPUTS)

    def linear(x: Array, h: Array) -> tuple[Array, Array]:
        before = np.concatenate([np.zeros_like(h[:, :1]), h[:, :-1]], axis=1)
        features = np.concatenate([x, before, np.ones_like(x[:, :, :1])], axis=2)
        return features, np.arctanh(np.arctanh(h))

    mean = np.concatenate([w_ih[cell], w_hh[cell], bias[cell, None]], axis=1).T
    inputs = 0.5 * rng.standard_normal((EXAMPLES, POSITIONS, INPUTS))
    return Case({"weight_ih": w_ih, "weight_hh": w_hh, "bias": bias}, inputs, mean, linear)


def residual(features: Array, outputs: Array, mean: Array) -> float:
    """Returns how much of the perturbation no weights explain; see the module.

    Args:
        features: φ [N, P, K].
        outputs: y [N, P, J].
        mean: W̄ [K, J].
    """
    unexplained = perturbation = 0.0
    for phi, y in zip(features, outputs, strict=True):
        w, *_ = np.linalg.lstsq(phi, y, rcond=None)
        unexplained += np.sum((y - phi @ w) ** 2)
        perturbation += np.sum((y - phi @ mean) ** 2)
    return float(np.sqrt(unexplained / perturbation))


def distribution(case: Case, forward: Forward, draws: int) -> dict[str, float]:
    """Compares many draws with the declared distribution N(W̄, SIGMA²); every example has the same inputs.

    At the first position, mean and standard deviation of y should be φ W̄ and SIGMA ‖φ‖ (an LSTM's state is
    0 there, its bias does not vary). At the last, examples should be uncorrelated: flipout's purpose.

    Returns:
        mean: measured over declared, by regression over the outputs; 1 is right.
        std: measured over declared; 1 is right.
        correlation: of two examples of a batch.
    """
    inputs = np.repeat(case.inputs[:1], EXAMPLES, axis=0)
    found = [case.linear(inputs, forward(inputs)) for _ in range(draws)]
    y = np.stack([outputs for _, outputs in found])  # [draws, N, P, J]
    phi = found[0][0][0, 0]
    declared_mean = phi @ case.mean
    varying = phi[:-1] if "bias" in case.weights else phi
    first, last = y[:, :, 0], y[:, :, -1] - y[:, :, -1].mean((0, 1))
    variance = np.mean((first - first.mean((0, 1))) ** 2)
    square_of_sum, sum_of_squares = np.sum(last.sum(1) ** 2), np.sum(last**2)
    return {
        "mean": float(first.mean((0, 1)) @ declared_mean / (declared_mean @ declared_mean)),
        "std": float(np.sqrt(variance) / (SIGMA * np.linalg.norm(varying))),
        "correlation": float((square_of_sum - sum_of_squares) / sum_of_squares / (EXAMPLES - 1)),
    }


def figures(make: Callable[..., Forward], case: Case, draws: int) -> dict[str, float]:
    """Returns the residual of one forward, and what `distribution` does, of a library's layer.

    Args:
        make: takes the case's weights and returns the layer.
        case: see `cases`.
        draws: forwards that the distribution is measured by.
    """
    forward = make(**case.weights)
    features, outputs = case.linear(case.inputs, forward(case.inputs))
    return {"residual": residual(features, outputs, case.mean), **distribution(case, forward, draws)}
