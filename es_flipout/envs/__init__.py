"""Environments: members play in a `gymnasium.vector.VectorEnv`, whether native, Gymnasium's or the user's."""

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.foreign import ForeignVectorEnv
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.envs.make import make_vec
from es_flipout.envs.make_single import make_env
from es_flipout.envs.mujoco import TASKS, MujocoTask, MujocoVectorEnv
from es_flipout.envs.native import register_task, runs_natively
from es_flipout.envs.numpy_vector_env import NumpyVectorEnv
from es_flipout.envs.remake_on_reset import RemakeOnReset
from es_flipout.envs.time_limit import DEFAULT_EPISODE_STEPS

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
