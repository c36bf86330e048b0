"""A small MLP of every member, each for its own observation, in one compiled function.

A row is computed on its own, one product after the other in the order of the inputs, so that its result
depends on no other row, and not on the width of the processor's vectors. All layers lie one behind the other
in flat arrays, each as a transposed weight [I, J] and a bias [J], where J is rounded up to a multiple of
`LANES`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from es_flipout.compilation import compiled

LANES = 8
"""Numbers that a processor's vector may hold; outputs are padded to a multiple of it."""
FLIPOUT, LOW_RANK, DENSE = range(3)
TANH, RELU, ELU, SILU = range(4)

P0, P1, P2, P3, P4 = map(
    np.float32,
    (
        0.9999999794673198,
        0.1338101800920743,
        3.495579060519301e-3,
        2.060893470474521e-5,
        1.3354463381876247e-8,
    ),
)
Q1, Q2, Q3, Q4 = map(
    np.float32, (0.4671433360568029, 2.5876947698202004e-2, 3.2856200355585485e-4, 7.77647568725173e-7)
)
TANH_RANGE, ONE = np.float32(9.0), np.float32(1.0)
"""tanh x = x P(x^2) / Q(x^2), with the smallest relative error on [-9, 9], 2e-8; float32 makes it 4e-7.

Beyond 9, tanh is ±1 in float32. Unlike a library's tanh, this one becomes vector instructions.
"""


@compiled
def tanh(x: Any, count: int) -> None:
    """Replaces the first numbers of x by their tanh."""
    if x.itemsize == 4:
        for j in range(count):
            bounded = min(max(x[j], -TANH_RANGE), TANH_RANGE)
            u = bounded * bounded
            p = P0 + u * (P1 + u * (P2 + u * (P3 + u * P4)))
            q = ONE + u * (Q1 + u * (Q2 + u * (Q3 + u * Q4)))
            result = min(max(bounded * p / q, -ONE), ONE)
            x[j] = result if x[j] == x[j] else x[j]
    else:
        for j in range(count):
            x[j] = math.tanh(x[j])


@compiled
def activate(x: Any, count: int, activation: int) -> None:
    """Applies an activation to the first numbers of x."""
    if activation == TANH:
        tanh(x, count)
        return
    for j in range(count):
        if activation == RELU:
            if x[j] < 0:
                x[j] = 0
        elif activation == ELU:
            if x[j] <= 0:
                x[j] = math.exp(x[j]) - 1
        else:
            x[j] = x[j] / (1 + math.exp(-x[j]))


@compiled
def add_product(y: Any, x: Any, ins: int, outs: int, weight: Any) -> None:
    """Adds x, [I], times a weight to y, [J].

    Four inputs at a time: y is then read and written a fourth as often. Every index starts at 0: where one
    might be negative, the compiler would not use vector instructions.

    Args:
        y: [J].
        x: [I].
        ins: I.
        outs: J.
        weight: begins with [I, J], flat.
    """
    whole = ins - ins % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        w0 = i * outs
        w1 = w0 + outs
        w2 = w1 + outs
        w3 = w2 + outs
        for j in range(outs):
            y[j] = (
                y[j] + x0 * weight[w0 + j] + x1 * weight[w1 + j] + x2 * weight[w2 + j] + x3 * weight[w3 + j]
            )
    for i in range(whole, ins):
        w0 = i * outs
        for j in range(outs):
            y[j] += x[i] * weight[w0 + j]


@compiled
def run_layer(
    x: Any, y: Any, z: Any, ins: int, outs: int, weights: Any, base: Any, noise: Any, kind: int, rank: int
) -> int:
    """Computes a perturbed linear map.

    Args:
        x: inputs, [I]; FLIPOUT overwrites them.
        y: outputs, [J], written.
        z: scratch, [J].
        ins: I.
        outs: J.
        weights: of the center, from this layer on.
        base: likewise, of the row's base.
        noise: likewise, of the row. FLIPOUT has signs s [I], r [J] and the bias's noise [J]; LOW_RANK has B
            [rank, I], A [rank, J] and the bias's; DENSE has the weight's noise [I, J] and the bias's. r, A
            and whatever is dense include sigma.
        kind: of the noise.
        rank: of LOW_RANK.

    Returns:
        How many numbers of `noise` are of this layer.
    """
    bias = weights[ins * outs :]
    for j in range(outs):
        y[j] = bias[j]
    add_product(y, x, ins, outs, weights)
    if kind == FLIPOUT:
        for i in range(ins):
            x[i] *= noise[i]
        for j in range(outs):
            z[j] = 0
        add_product(z, x, ins, outs, base)
        signs = noise[ins:]
        for j in range(outs):
            y[j] += z[j] * signs[j]
        used = ins + outs
    elif kind == LOW_RANK:
        for k in range(rank):
            right, left = noise[k * ins :], noise[rank * ins + k * outs :]
            z[0] = 0
            for i in range(ins):
                z[0] += x[i] * right[i]
            for j in range(outs):
                y[j] += z[0] * left[j]
        used = rank * (ins + outs)
    else:
        add_product(y, x, ins, outs, noise)
        used = ins * outs
    of_bias = noise[used:]
    for j in range(outs):
        y[j] += of_bias[j]
    return used + outs


@compiled
def act(
    live: Any,
    observations: Any,
    moments: Any,
    actions: Any,
    controls: Any,
    base_of_row: Any,
    noise: Any,
    kind: int,
    rank: int,
    weights: Any,
    bases: Any,
    mean: Any,
    scale: Any,
    clip: Any,
    sizes: Any,
    activation: int,
    low: Any,
    high: Any,
    middle: Any,
    reach: Any,
    rescales: bool,
) -> None:
    """Runs every live row's policy, and adds its observation to its moments.

    Args:
        live: which rows, bool [N].
        observations: [N, O].
        moments: a reference point near the row's observations, the sum of deviations from it and that of
            their squares, float64 [3, N, O].
        actions: float32 [N, A], written.
        controls: the same as MuJoCo has them, float64 [N, A], written.
        base_of_row: which of `bases` each row uses, int64 [N].
        noise: of each row, [N, ...]; see `run_layer`.
        kind: of the noise.
        rank: of LOW_RANK.
        weights: of the center, [1, ...].
        bases: of FLIPOUT, [K, ...], each like `weights`.
        mean: subtracted from observations, [O].
        scale: then multiplied, [O].
        clip: bound on what comes of it.
        sizes: inputs of the first layer, then outputs of each, padded, int64 [L + 1].
        activation: between layers.
        low: smallest actions, float32 [A].
        high: largest.
        middle: of the range, used if `rescales`.
        reach: half of the range, likewise.
        rescales: whether outputs are squashed into the range, or only clipped.
    """
    num_layers, widest = len(sizes) - 1, max(sizes)
    # Made here, so that the compiler knows that nothing else writes to them, and uses vector instructions.
    x, y, z = (
        np.empty(widest, weights.dtype),
        np.empty(widest, weights.dtype),
        np.empty(widest, weights.dtype),
    )
    for n in range(len(live)):
        if not live[n]:
            continue
        for k in range(sizes[0]):
            deviation = observations[n, k] - moments[0, n, k]
            moments[1, n, k] += deviation
            moments[2, n, k] += deviation * deviation
            x[k] = observations[n, k]  # in the policy's dtype
            standardized = (x[k] - mean[k]) * scale[k]
            if standardized > clip:
                standardized = clip
            elif standardized < -clip:
                standardized = -clip
            x[k] = standardized
        base, start, used = bases[base_of_row[n]], 0, 0
        for layer in range(num_layers):
            ins, outs = sizes[layer], sizes[layer + 1]
            used += run_layer(
                x, y, z, ins, outs, weights[0, start:], base[start:], noise[n, used:], kind, rank
            )
            start += (ins + 1) * outs
            if layer < num_layers - 1:
                activate(y, outs, activation)
            for j in range(outs):
                x[j] = y[j]
        if rescales:
            tanh(x, len(low))
        for k in range(len(low)):
            output = middle[k] + x[k] * reach[k] if rescales else x[k]
            if output < low[k]:
                output = low[k]
            elif output > high[k]:
                output = high[k]
            actions[n, k] = output
            controls[n, k] = actions[n, k]


@compiled
def add_up(live: Any, rewards: Any, returns: Any, lengths: Any, limit: int) -> bool:
    """Adds rewards to returns, and returns whether an episode has reached a limit of steps; 0 for none."""
    reached = False
    for n in range(len(live)):
        if live[n]:
            returns[n] += rewards[n]
            lengths[n] += 1
            if 0 < limit <= lengths[n]:
                reached = True
    return reached
