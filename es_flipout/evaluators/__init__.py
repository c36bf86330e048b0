"""Evaluators: from a population to the fitness of its members."""

from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.tiles import Evaluation, EvaluationStoppedError
from es_flipout.evaluators.vectorized import VectorizedEvaluator

__all__ = [
    "Evaluation",
    "EvaluationStoppedError",
    "OfficialEvaluator",
    "OfficialScore",
    "VectorizedEvaluator",
]
