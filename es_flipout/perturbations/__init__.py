"""Noise families behind one contract, and the rules by which torch operations run perturbed."""

from es_flipout.config import ESConfig
from es_flipout.perturbations import rules
from es_flipout.perturbations.base import NoiseRows, Perturbation, PopulationNoise
from es_flipout.perturbations.flipout import Flipout, FlipoutRows
from es_flipout.perturbations.independent import Independent
from es_flipout.perturbations.low_rank import LowRank
from es_flipout.perturbations.parameter_noise import ParameterNoise
from es_flipout.perturbations.stand_in import (
    MemberContext,
    PerturbedParameter,
    UnsupportedOperationError,
    rule,
)

__all__ = [
    "Flipout",
    "FlipoutRows",
    "Independent",
    "LowRank",
    "MemberContext",
    "NoiseRows",
    "ParameterNoise",
    "Perturbation",
    "PerturbedParameter",
    "PopulationNoise",
    "UnsupportedOperationError",
    "make_perturbation",
    "rule",
    "rules",
]


def make_perturbation(config: ESConfig) -> Perturbation:
    """Builds the configured noise family."""
    if config.perturbation == "independent":
        return Independent()
    if config.perturbation == "low_rank":
        return LowRank(config.rank)
    return Flipout(config.num_bases, config.base)
