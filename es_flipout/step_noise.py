"""Normal numbers for the env steps of an episode that depend on the episode, the step and a place alone.

Whoever plays the episode, in whatever company and on whatever device, draws the same numbers: a hash of
(key, step, place) takes the role of a generator's state. The hash is that of SplitMix64 (Steele, Lea and
Flood, 2014, doi:10.1145/2660193.2660195); the Box-Muller transform makes two normal numbers of its 64 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.compilation import compiled

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's constants."""
_UGAMMA, _UMIX_1, _UMIX_2 = (np.uint64(each) for each in (_GAMMA, _MIX_1, _MIX_2))
_U30, _U27, _U31, _U32, _U1, _LOW = (np.uint64(each) for each in (30, 27, 31, 32, 1, 0xFFFFFFFF))
ACTIONS = 1
"""What noise on actions is drawn for; see `episode_keys`."""


@compiled
def _mixed(z: Any) -> Any:
    """Returns SplitMix64's output function of a uint64."""
    z = (z ^ (z >> _U30)) * _UMIX_1
    z = (z ^ (z >> _U27)) * _UMIX_2
    return z ^ (z >> _U31)


@compiled
def fill_normal(numbers: Any, live: Any, keys: Any, steps: Any) -> None:
    """Fills rows with standard normal numbers.

    Args:
        numbers: [N, K], float32 or float64, written where `live`.
        live: which rows, bool [N].
        keys: of the episodes, int64 [N].
        steps: env steps that they have made, int64 [N].
    """
    size = numbers.shape[1]
    for n in range(len(live)):
        if not live[n]:
            continue
        begin = _mixed(np.uint64(keys[n]) + _UGAMMA * (np.uint64(steps[n]) + _U1))
        for j in range(0, size, 2):
            bits = _mixed(begin + _UGAMMA * (np.uint64(j) + _U1))
            radius = math.sqrt(-2.0 * math.log(((bits >> _U32) + 0.5) * 2.0**-32))
            angle = 2.0 * math.pi * ((bits & _LOW) * 2.0**-32)
            numbers[n, j] = radius * math.cos(angle)
            if j + 1 < size:
                numbers[n, j + 1] = radius * math.sin(angle)


def normal(keys: Tensor, steps: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Returns what `fill_normal` writes, up to rounding, on any device: [N, size], in a floating dtype.

    Args:
        keys: of the episodes, int64 [N].
        steps: env steps that they have made, int64 [N].
        size: numbers per episode.
        dtype: of the result; it is computed in float64.
    """
    places = torch.arange(0, size, 2, device=keys.device)
    begin = _mixed_tensor(keys + _signed(_GAMMA) * (steps + 1))
    bits = _mixed_tensor(begin.unsqueeze(1) + _signed(_GAMMA) * (places + 1))
    radius = (-2.0 * ((_shifted(bits, 32).double() + 0.5) * 2.0**-32).log()).sqrt()
    angle = 2.0 * math.pi * ((bits & 0xFFFFFFFF).double() * 2.0**-32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    return pairs.flatten(1)[:, :size].to(dtype)


def _mixed_tensor(z: Tensor) -> Tensor:
    """Returns SplitMix64's output function of int64 numbers, whose bits are taken as unsigned."""
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_2)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Returns unsigned numbers shifted to the right: torch's own shift copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Returns the int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


def episode_keys(seeds: NDArray[np.int64], purpose: int) -> NDArray[np.int64]:
    """Returns keys of episodes, int64 [N], from their reset seeds, one for each purpose, a small integer."""
    with np.errstate(over="ignore"):
        keys: NDArray[np.int64] = (seeds.astype(np.uint64) * _UMIX_1 + np.uint64(purpose) * _UMIX_2).view(
            np.int64
        )
    return keys
