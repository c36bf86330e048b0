"""The policy of every contestant, as far as NumPy goes: its layers, and their initial weights.

observation -> 64 tanh -> 64 tanh -> action, tanh times the greatest action; the initial outputs are small.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.peers.contestant import HIDDEN
from benchmarks.peers.pool import Floats

OUTPUT_GAIN = 0.01


def layer_shapes(observations: gym.Space[Any], actions: gym.Space[Any]) -> list[tuple[int, int]]:
    """Returns the shapes of each layer's weight [I, J] and bias [1, J]."""
    widths = [*observations.shape, HIDDEN, HIDDEN, *actions.shape]
    return [shape for inputs, outputs in pairwise(widths) for shape in ((inputs, outputs), (1, outputs))]


def layer_slices(shapes: list[tuple[int, int]]) -> list[slice]:
    """Returns where each of them lies in a vector of all weights."""
    return [slice(*ends) for ends in pairwise(accumulate((int(np.prod(s)) for s in shapes), initial=0))]


def action_reach(actions: gym.Space[Any]) -> Floats:
    """Returns the greatest actions, [A]; the least are their negatives."""
    if not np.array_equal(actions.low, -actions.high):
        raise ValueError(f"actions must be symmetric, got {actions}")
    return actions.high.astype(np.float32)


def initial_weights(task: str, seed: int) -> Floats:
    """Returns the weights of the unperturbed policy, [D]: rows of norm 1, a small last layer, no biases."""
    env = gym.make(task)
    shapes = layer_shapes(env.observation_space, env.action_space)
    env.close()
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape) * (shape[0] > 1) for shape in shapes]
    weights = [weight / np.maximum(np.linalg.norm(weight, axis=0), 1e-12) for weight in weights]
    weights[-2] *= OUTPUT_GAIN
    return np.concatenate([weight.ravel() for weight in weights]).astype(np.float32)
