"""The noise families that are compared, and the work in each."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.speed.work import FlipoutWork, IndependentWork, LowRankWork, NoiseWork
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation


@dataclass(frozen=True)
class Family:
    """A noise family and its work."""

    perturbation: Perturbation
    work: NoiseWork


INDEPENDENT = "independent"
FAMILIES: dict[str, Family] = {
    "flipout": Family(Flipout(), FlipoutWork(1)),
    "flipout, 8 bases": Family(Flipout(num_bases=8), FlipoutWork(8)),
    "low rank 1": Family(LowRank(1), LowRankWork(1)),
    "low rank 4": Family(LowRank(4), LowRankWork(4)),
    INDEPENDENT: Family(Independent(), IndependentWork()),
}
MULTIPLE = 16
"""What a population is a multiple of, for every family to serve it: 8 bases of antithetic pairs."""
SIGMA = 0.05
"""Standard deviation of a weight's perturbation; no time depends on it."""
