"""Evaluators: from a population to the fitness of its members."""

from es_flipout.evaluators.factory import make_envs, make_evaluator, num_threads
from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.process_pool import ProcessPoolEvaluator, WorkerError
from es_flipout.evaluators.results import Evaluation, EvaluationStoppedError
from es_flipout.evaluators.rollout import Episode, GymnasiumRollout, Rollout
from es_flipout.evaluators.seeds import reset_seeds
from es_flipout.evaluators.vectorized import VectorizedEvaluator, evaluate

__all__ = [
    "Episode",
    "Evaluation",
    "EvaluationStoppedError",
    "GymnasiumRollout",
    "OfficialEvaluator",
    "OfficialScore",
    "ProcessPoolEvaluator",
    "Rollout",
    "VectorizedEvaluator",
    "WorkerError",
    "evaluate",
    "make_envs",
    "make_evaluator",
    "num_threads",
    "reset_seeds",
]
