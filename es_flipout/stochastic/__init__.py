"""Noise on weights under back-propagation: the other half of flipout, for any torch module."""

from es_flipout.stochastic.distributions import (
    AdditiveGaussian,
    DropConnect,
    LearnedGaussian,
    MultiplicativeGaussian,
    WeightDistribution,
)
from es_flipout.stochastic.estimators import Estimator
from es_flipout.stochastic.perturbed_module import PerturbedModule
from es_flipout.stochastic.wrap import perturbed

__all__ = [
    "AdditiveGaussian",
    "DropConnect",
    "Estimator",
    "LearnedGaussian",
    "MultiplicativeGaussian",
    "PerturbedModule",
    "WeightDistribution",
    "perturbed",
]
