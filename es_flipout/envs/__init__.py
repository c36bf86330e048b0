"""Environments: members play in a `gymnasium.vector.VectorEnv`, whether native, Gymnasium's or the user's."""

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.foreign import ForeignVectorEnv
from es_flipout.envs.gymnasium import GymnasiumVectorEnv, make_env
from es_flipout.envs.make import make_vec
from es_flipout.envs.mujoco import TASKS, MujocoTask, MujocoVectorEnv
from es_flipout.envs.native import register_task, runs_natively

__all__ = [
    "TASKS",
    "ForeignVectorEnv",
    "GymnasiumVectorEnv",
    "MujocoTask",
    "MujocoVectorEnv",
    "TorchVectorEnv",
    "make_env",
    "make_vec",
    "register_task",
    "runs_natively",
]
