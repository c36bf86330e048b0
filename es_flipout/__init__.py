"""Evolution strategies at the speed of the physics: one forward for a whole population, by flipout."""

from es_flipout.envs import MujocoTask, make_vec, register_task
from es_flipout.fitness import centered_ranks, nes, raw, standardized
from es_flipout.normalization import ObservationNormalizer, RunningStatistics
from es_flipout.optimizers import ClipUp
from es_flipout.perturbations import (
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    UnsupportedOperationError,
    rule,
)
from es_flipout.policies import (
    CNNPolicy,
    GRUPolicy,
    LinearPolicy,
    LSTMPolicy,
    MLPPolicy,
    StackedPolicy,
    stacked_space,
)
from es_flipout.population import Population
from es_flipout.rollout import (
    BaselinePlayer,
    Episodes,
    GymnasiumRollout,
    HostPlayer,
    Scorer,
    evaluate,
    reset_seeds,
)
from es_flipout.run.config import Config
from es_flipout.run.trainer import Trainer
from es_flipout.strategy import FlipoutES
from es_flipout.update import Update

__version__ = "0.2.0"

__all__ = [
    "BaselinePlayer",
    "CNNPolicy",
    "ClipUp",
    "Config",
    "Episodes",
    "Flipout",
    "FlipoutES",
    "GRUPolicy",
    "GymnasiumRollout",
    "HostPlayer",
    "Independent",
    "LSTMPolicy",
    "LinearPolicy",
    "LowRank",
    "MLPPolicy",
    "MujocoTask",
    "ObservationNormalizer",
    "Perturbation",
    "Population",
    "RunningStatistics",
    "Scorer",
    "StackedPolicy",
    "Trainer",
    "UnsupportedOperationError",
    "Update",
    "__version__",
    "centered_ranks",
    "evaluate",
    "make_vec",
    "nes",
    "raw",
    "register_task",
    "reset_seeds",
    "rule",
    "stacked_space",
    "standardized",
]
