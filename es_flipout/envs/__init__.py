"""Environments: everything that members are rolled out in is a `gymnasium.vector.VectorEnv`."""

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.foreign import ForeignVectorEnv
from es_flipout.envs.gymnasium import GymnasiumVectorEnv, make_env
from es_flipout.envs.make import make_vec, register_task, runs_natively
from es_flipout.envs.mujoco import TASKS, MujocoTask, MujocoVectorEnv

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
