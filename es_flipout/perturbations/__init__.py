"""Noise families behind one contract, and the rules by which torch operations run perturbed."""

from es_flipout.perturbations import rules
from es_flipout.perturbations.base import NoiseRows, Perturbation, PopulationNoise
from es_flipout.perturbations.flipout import Flipout, FlipoutRows
from es_flipout.perturbations.independent import Independent
from es_flipout.perturbations.low_rank import LowRank
from es_flipout.perturbations.parameter_noise import ParameterNoise
from es_flipout.perturbations.perturbed_parameter import (
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
    "rule",
    "rules",
]
