"""Evaluators: from a population to the fitness of its members."""

from es_flipout.evaluators.background_judge import BackgroundJudge
from es_flipout.evaluators.factory import evaluate, make_evaluator, make_probe, num_threads
from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.on_device import DeviceError, OnDeviceEvaluator
from es_flipout.evaluators.placement import place
from es_flipout.evaluators.process_pool import ProcessPoolEvaluator
from es_flipout.evaluators.results import Evaluation, EvaluationStoppedError
from es_flipout.evaluators.rollout import Episode, GymnasiumRollout, Rollout
from es_flipout.evaluators.seeds import reset_seeds
from es_flipout.evaluators.vectorized import VectorizedEvaluator
from es_flipout.evaluators.worker_pool import WorkerError, WorkerPool

__all__ = [
    "BackgroundJudge",
    "DeviceError",
    "Episode",
    "Evaluation",
    "EvaluationStoppedError",
    "GymnasiumRollout",
    "OfficialEvaluator",
    "OfficialScore",
    "OnDeviceEvaluator",
    "ProcessPoolEvaluator",
    "Rollout",
    "VectorizedEvaluator",
    "WorkerError",
    "WorkerPool",
    "evaluate",
    "make_evaluator",
    "make_probe",
    "num_threads",
    "place",
    "reset_seeds",
]
