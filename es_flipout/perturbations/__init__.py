"""Noise families with one contract, and the rules that run torch operations with perturbed parameters."""

from es_flipout.perturbations import rules
from es_flipout.perturbations.base import NoiseRows, Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.flipout import Flipout, FlipoutRows
from es_flipout.perturbations.independent import Independent
from es_flipout.perturbations.low_rank import LowRank, LowRankRows
from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.member_rows import MemberRows
from es_flipout.perturbations.module_copy import copy_module
from es_flipout.perturbations.noise_table import DenseTable, NoiseTable
from es_flipout.perturbations.parameter_noise import ParameterNoise
from es_flipout.perturbations.perturbed_parameter import PerturbedParameter
from es_flipout.perturbations.registry import UnsupportedOperationError, rule
from es_flipout.perturbations.tiles import ComputeTiles, Tile, compute_here

__all__ = [
    "ComputeTiles",
    "DenseTable",
    "Flipout",
    "FlipoutRows",
    "Independent",
    "LowRank",
    "LowRankRows",
    "MemberContext",
    "MemberRows",
    "NoiseRows",
    "NoiseTable",
    "ParameterNoise",
    "Perturbation",
    "PerturbedParameter",
    "PopulationNoise",
    "Tile",
    "UnsupportedOperationError",
    "compute_here",
    "copy_module",
    "num_directions",
    "rule",
    "rules",
]
