"""The Gymnasium MuJoCo v5 tasks over batched fields."""

from es_flipout.envs.mujoco.ant import Ant
from es_flipout.envs.mujoco.half_cheetah import HalfCheetah
from es_flipout.envs.mujoco.hopper import Hopper
from es_flipout.envs.mujoco.humanoid import Humanoid
from es_flipout.envs.mujoco.humanoid_standup import HumanoidStandup
from es_flipout.envs.mujoco.inverted_double_pendulum import InvertedDoublePendulum
from es_flipout.envs.mujoco.inverted_pendulum import InvertedPendulum
from es_flipout.envs.mujoco.pusher import Pusher
from es_flipout.envs.mujoco.reacher import Reacher
from es_flipout.envs.mujoco.swimmer import Swimmer
from es_flipout.envs.mujoco.task import Fields, MujocoTask
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv
from es_flipout.envs.mujoco.walker2d import Walker2d

TASKS: dict[str, type[MujocoTask]] = {
    "Ant-v5": Ant,
    "HalfCheetah-v5": HalfCheetah,
    "Hopper-v5": Hopper,
    "Humanoid-v5": Humanoid,
    "HumanoidStandup-v5": HumanoidStandup,
    "InvertedDoublePendulum-v5": InvertedDoublePendulum,
    "InvertedPendulum-v5": InvertedPendulum,
    "Pusher-v5": Pusher,
    "Reacher-v5": Reacher,
    "Swimmer-v5": Swimmer,
    "Walker2d-v5": Walker2d,
}
"""Every native task, by its Gymnasium id."""

__all__ = [
    "TASKS",
    "Ant",
    "Fields",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "MujocoTask",
    "MujocoVectorEnv",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
]
