"""Elites: only the best directions of a generation move the policy, as the top directions do in ARS.

A direction is an antithetic pair, or a member where there are no pairs. Of the N directions, the
b = round(fraction N) with the highest fitness of a member, max(r+, r-), are chosen (Mania, Guy and Recht,
2018, arXiv 1803.07055, algorithm 2, V1-t and V2-t), and the gradient estimate is the mean over them. At least
two members are: one alone cannot be better than others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from es_flipout.fitness import Shaping, as_utilities, failed


def elite_members(fitness: Tensor, fraction: float, *, antithetic: bool) -> Tensor:
    """Returns the members of the best directions, in their order, int64 [M].

    Directions of equal fitness are chosen in their order. A failed member counts as the worst, so a pair with
    one failed member is ranked by the other.

    Args:
        fitness: of all members, [P].
        fraction: the share of the directions, in (0, 1].
        antithetic: whether members 2q and 2q + 1 are a pair.
    """
    members = torch.arange(len(fitness))
    if fraction == 1:
        return members
    unit = 2 if antithetic else 1
    best_of_direction = torch.where(failed(fitness), -math.inf, fitness).view(-1, unit).amax(dim=1)
    count = max(2 // unit, round(fraction * len(best_of_direction)))
    directions = best_of_direction.argsort(descending=True, stable=True)[:count]
    return members.view(-1, unit)[directions.sort().values].flatten()


def elite_utilities(shaping: Shaping, fitness: Tensor, members: Tensor) -> Tensor:
    """Returns the utilities of all members, float64 [P]: 0 but for the elites.

    Elites are shaped among themselves, so that `standardized` divides by the standard deviation of their
    returns alone, as ARS does. Their utilities are multiplied by P / M, which makes the gradient estimate
    1 / (P sigma) Σ_m u_m eps_m the mean over the elites.

    Args:
        shaping: from returns [M] to utilities [M].
        fitness: of all members, [P].
        members: the elites, int64 [M].

    Raises:
        TypeError: if the shaping does not return real numbers.
        ValueError: if it does not return one finite number per elite.
    """
    utilities = torch.zeros(len(fitness), dtype=torch.float64)
    shaped = as_utilities(shaping(fitness[members]), members)
    utilities[members] = shaped * (len(fitness) / len(members))
    return utilities
