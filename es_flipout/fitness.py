"""Fitness shaping: from returns to the utilities that weight each member's perturbation.

Pure functions of a vector of returns [P]. For all of them, equal returns get equal utilities, utilities sum
to zero (and are exactly zero if all returns are equal), and a member whose return is not finite counts as the
worst: by rank below all others, by value equal to the lowest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

FitnessShaping = Literal["centered_ranks", "standardized", "nes", "raw"]
FITNESS_SHAPING: Final = "centered_ranks"
"""The default."""
Shaping = Callable[[Tensor], Tensor]


def failed(fitness: Tensor) -> Tensor:
    """Returns which members have no usable return (NaN or infinite), bool [P]."""
    return ~fitness.isfinite()


def _replace_failed(fitness: Tensor) -> Tensor:
    """Returns the fitness, failed members' replaced by the worst of the others."""
    bad = failed(fitness)
    if not bad.any():
        return fitness
    worst = fitness[~bad].min() if not bad.all() else torch.zeros((), dtype=fitness.dtype)
    return torch.where(bad, worst, fitness)


def _all_equal(fitness: Tensor) -> bool:
    """Returns whether all members are equal: utilities must then be 0, not rounding errors."""
    return bool((fitness == fitness[0]).all() or failed(fitness).all())


def _share_among_ties(fitness: Tensor, by_rank: Tensor) -> Tensor:
    """Returns each member's value by rank, [P]; members of equal fitness share the mean of theirs.

    Args:
        fitness: returns [P]; failed members rank below all others.
        by_rank: value of each rank from worst to best, float64 [P].
    """
    keys = torch.where(failed(fitness), -math.inf, fitness.to(torch.float64))
    _, group, sizes = torch.unique(keys, sorted=True, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), dtype=torch.float64)
    sums.index_add_(0, torch.repeat_interleave(sizes), by_rank)
    shared: Tensor = (sums / sizes)[group]
    return shared


def centered_ranks(fitness: Tensor) -> Tensor:
    """Returns ranks scaled to [-1/2, 1/2] (Salimans et al., 2017, arXiv 1703.03864), float64 [P]."""
    size = len(fitness)
    if _all_equal(fitness):
        return torch.zeros(size, dtype=torch.float64)
    ranks = _share_among_ties(fitness, torch.arange(size, dtype=torch.float64))
    return ranks / (size - 1) - 0.5


def nes(fitness: Tensor) -> Tensor:
    """Returns the utilities of natural evolution strategies, float64 [P].

    With rank i = 1 for the best, u_i = max(0, ln(P/2 + 1) - ln i) / Σ_j max(0, ln(P/2 + 1) - ln j) - 1/P
    (Wierstra, Schaul, Glasmachers, Sun, Peters and Schmidhuber, JMLR 15, 2014).
    """
    size = len(fitness)
    if _all_equal(fitness):
        return torch.zeros(size, dtype=torch.float64)
    from_worst = torch.arange(size, 0, -1, dtype=torch.float64)
    by_rank = (math.log(size / 2 + 1) - from_worst.log()).clamp(min=0.0)
    return _share_among_ties(fitness, by_rank / by_rank.sum() - 1 / size)


def raw(fitness: Tensor) -> Tensor:
    """Returns the returns minus their mean, float64 [P].

    The mean is a baseline that removes most of the estimate's variance. Antithetic pairs cancel it anyway;
    without them it scales the estimate's expectation by (P - 1) / P.
    """
    fitness = _replace_failed(fitness.to(torch.float64))
    return torch.zeros_like(fitness) if _all_equal(fitness) else fitness - fitness.mean()


def standardized(fitness: Tensor) -> Tensor:
    """Returns the fitness minus its mean, over its standard deviation (zeros if that is 0), float64 [P]."""
    centered = raw(fitness)
    deviation = centered.square().mean().sqrt()
    return centered / deviation if deviation > 0 else centered


def tied_fraction(fitness: Tensor) -> float:
    """Returns the share of members that share their return with another; failed ones count as equal."""
    keys = torch.where(failed(fitness), -math.inf, fitness.to(torch.float64))
    _, group, sizes = torch.unique(keys, return_inverse=True, return_counts=True)
    return float((sizes[group] > 1).double().mean())


SHAPINGS: dict[FitnessShaping, Shaping] = {
    "centered_ranks": centered_ranks,
    "standardized": standardized,
    "nes": nes,
    "raw": raw,
}
"""Every fitness shaping, by its configured name."""
