"""What `es_flipout.envs` exports; each name is imported when it is first used."""

from .contract import TorchVectorEnv
from .foreign import ForeignVectorEnv
from .gymnasium import GymnasiumVectorEnv
from .make import make_vec
from .make_single import make_env
from .mujoco import TASKS, MujocoTask, MujocoVectorEnv
from .native import register_task, runs_natively
from .numpy_vector_env import NumpyVectorEnv
from .remake_on_reset import RemakeOnReset
from .time_limit import DEFAULT_EPISODE_STEPS

__all__ = [
    "DEFAULT_EPISODE_STEPS",
    "TASKS",
    "ForeignVectorEnv",
    "GymnasiumVectorEnv",
    "MujocoTask",
    "MujocoVectorEnv",
    "NumpyVectorEnv",
    "RemakeOnReset",
    "TorchVectorEnv",
    "make_env",
    "make_vec",
    "register_task",
    "runs_natively",
]
