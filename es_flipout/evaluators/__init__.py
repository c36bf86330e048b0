"""Evaluators: from a population to the fitness of its members."""

from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.results import Evaluation, EvaluationStoppedError
from es_flipout.evaluators.seeds import reset_seeds
from es_flipout.evaluators.vectorized import VectorizedEvaluator, evaluate

__all__ = [
    "Evaluation",
    "EvaluationStoppedError",
    "OfficialEvaluator",
    "OfficialScore",
    "VectorizedEvaluator",
    "evaluate",
    "reset_seeds",
]
