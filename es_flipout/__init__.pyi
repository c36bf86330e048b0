"""What the package exports, by name: `__init__.py` imports each from here when it is first used."""

from .envs import MujocoTask, make_vec, register_task
from .fitness import centered_ranks, nes, raw, standardized
from .normalization import ObservationNormalizer, RunningStatistics
from .optimizers import ClipUp
from .perturbations import (
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    UnsupportedOperationError,
    rule,
)
from .policies import (
    CNNPolicy,
    GRUPolicy,
    LinearPolicy,
    LSTMPolicy,
    MLPPolicy,
    StackedPolicy,
    stacked_space,
)
from .population import Population
from .rollout import (
    BaselinePlayer,
    Episodes,
    GymnasiumRollout,
    HostPlayer,
    Scorer,
    evaluate,
    reset_seeds,
)
from .run.config import Config
from .run.loaded_policy import LoadedPolicy, load_policy
from .run.metrics import GenerationMetrics
from .run.reporters.contract import Reporter, RunInfo
from .run.trainer import Trainer
from .sigma_adaptation import SigmaAdaptation
from .strategy import FlipoutES
from .update import Update

__version__: str

__all__ = [
    "BaselinePlayer",
    "CNNPolicy",
    "ClipUp",
    "Config",
    "Episodes",
    "Flipout",
    "FlipoutES",
    "GRUPolicy",
    "GenerationMetrics",
    "GymnasiumRollout",
    "HostPlayer",
    "Independent",
    "LSTMPolicy",
    "LinearPolicy",
    "LoadedPolicy",
    "LowRank",
    "MLPPolicy",
    "MujocoTask",
    "ObservationNormalizer",
    "Perturbation",
    "Population",
    "Reporter",
    "RunInfo",
    "RunningStatistics",
    "Scorer",
    "SigmaAdaptation",
    "StackedPolicy",
    "Trainer",
    "UnsupportedOperationError",
    "Update",
    "__version__",
    "centered_ranks",
    "evaluate",
    "load_policy",
    "make_vec",
    "nes",
    "raw",
    "register_task",
    "reset_seeds",
    "rule",
    "stacked_space",
    "standardized",
]
