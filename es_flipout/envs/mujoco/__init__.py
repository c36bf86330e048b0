"""The Gymnasium MuJoCo v5 tasks over batched fields."""

from es_flipout.envs.mujoco.half_cheetah import HalfCheetah
from es_flipout.envs.mujoco.humanoid import Humanoid
from es_flipout.envs.mujoco.inverted_pendulum import InvertedPendulum
from es_flipout.envs.mujoco.task import Fields, MujocoTask
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv

TASKS: dict[str, type[MujocoTask]] = {task.env_id: task for task in (HalfCheetah, Humanoid, InvertedPendulum)}
"""Every native task, by its Gymnasium id."""

__all__ = ["TASKS", "Fields", "HalfCheetah", "Humanoid", "InvertedPendulum", "MujocoTask", "MujocoVectorEnv"]
