"""Evaluators: from a population to the fitness of its members."""

from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.vectorized import Evaluation, EvaluationStoppedError, VectorizedEvaluator

__all__ = [
    "Evaluation",
    "EvaluationStoppedError",
    "OfficialEvaluator",
    "OfficialScore",
    "VectorizedEvaluator",
]
