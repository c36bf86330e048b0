"""Noise families behind one contract, and the rules by which torch operations run perturbed."""

from es_flipout.config import ESConfig
from es_flipout.perturbations.base import ParameterNoise, Perturbation, PopulationNoise
from es_flipout.perturbations.flipout import Flipout, FlipoutNoise
from es_flipout.perturbations.independent import Independent, IndependentNoise
from es_flipout.perturbations.rules import PerturbedParameter, UnsupportedOperationError, rule

__all__ = [
    "Flipout",
    "FlipoutNoise",
    "Independent",
    "IndependentNoise",
    "ParameterNoise",
    "Perturbation",
    "PerturbedParameter",
    "PopulationNoise",
    "UnsupportedOperationError",
    "make_perturbation",
    "rule",
]


def make_perturbation(config: ESConfig) -> Perturbation:
    """Builds the configured noise family."""
    if config.perturbation == "independent":
        return Independent(mirrored=config.mirrored)
    return Flipout(config.base_distribution, config.num_bases, config.mirrored)
