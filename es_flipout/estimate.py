"""The gradient estimate of a generation, from one or more populations of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from es_flipout.perturbations import ComputeTiles, compute_here
from es_flipout.perturbations.torch_modes import untracked
from es_flipout.population import Population
from es_flipout.update import dot, norm


@untracked
def mean_gradient(
    populations: Sequence[Population], utilities: Tensor, compute_tiles: ComputeTiles = compute_here
) -> dict[str, Tensor]:
    """Returns the mean of the populations' gradient estimates, by name of the parameter.

    Args:
        populations: B populations of P members.
        utilities: of all members, in the order of the populations, [B P].
        compute_tiles: computes the tiles of all populations' sums, in one call.
    """
    parts = _parts(populations, utilities)
    tiles = [tile for population, part in parts for tile in population.gradient_tiles(part)]
    values = iter(compute_tiles(tiles))
    return _mean([population.gradient_from(values) for population, _ in parts])


@untracked
def mean_magnitudes(
    populations: Sequence[Population], utilities: Tensor, compute_tiles: ComputeTiles = compute_here
) -> dict[str, Tensor]:
    """Returns the mean of the populations' `magnitudes_from`; arguments as of `mean_gradient`."""
    parts = _parts(populations, utilities)
    tiles = [tile for population, part in parts for tile in population.magnitude_tiles(part)]
    values = iter(compute_tiles(tiles))
    return _mean([population.magnitudes_from(part, values) for population, part in parts])


def _parts(populations: Sequence[Population], utilities: Tensor) -> list[tuple[Population, Tensor]]:
    """Returns each population with the utilities of its members."""
    sizes = [population.size for population in populations]
    return list(zip(populations, torch.split(utilities, sizes), strict=True))


def _mean(estimates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean of estimates, by name of the parameter; the first is overwritten."""
    first, *others = estimates
    for other in others:
        for name, value in other.items():
            first[name] += value
    return {name: value / len(estimates) for name, value in first.items()}


def signal_to_noise(
    populations: Sequence[Population],
    utilities: Tensor,
    gradient: Mapping[str, Tensor],
    members: Tensor,
    compute_tiles: ComputeTiles = compute_here,
) -> float:
    """Returns how much of a gradient estimate is signal; see `FlipoutES.tell`.

    Args:
        populations: B populations of P members.
        utilities: of all members, in the order of the populations, [B P].
        gradient: their `mean_gradient`.
        members: those of whose noise it is made, in their order, int64 [M]; all others have utility 0.
        compute_tiles: computes the tiles of the gradient of the first half of the members.
    """
    # Halves alternate by antithetic pair; the second half's estimate follows from 2 g = g_A + g_B.
    unit = 2 if populations[0].noise.antithetic else 1
    if len(members) < 2 * unit:
        return math.nan
    first_half = members[torch.arange(len(members)) // unit % 2 == 0].to(utilities.device)
    doubled = torch.zeros_like(utilities)
    doubled[first_half] = 2 * utilities[first_half]
    first = mean_gradient(populations, doubled, compute_tiles)
    second = {name: 2 * gradient[name] - first[name] for name in first}
    difference = {name: first[name] - second[name] for name in first}
    noise = norm(difference) ** 2 / 4
    return dot(first, second) / noise if noise else math.nan
