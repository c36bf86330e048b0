"""Evaluators: from a population to the fitness of its members."""

from es_flipout.rollout.background_score import BackgroundJudge
from es_flipout.rollout.baseline import ProcessPoolEvaluator
from es_flipout.rollout.device import DeviceError, OnDeviceEvaluator
from es_flipout.rollout.episodes import Evaluation, EvaluationStoppedError
from es_flipout.rollout.host import VectorizedEvaluator
from es_flipout.rollout.score import OfficialEvaluator, OfficialScore
from es_flipout.rollout.seeds import reset_seeds
from es_flipout.rollout.single_env import Episode, GymnasiumRollout, Rollout
from es_flipout.rollout.workers import WorkerError, WorkerPool

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
    "reset_seeds",
]
