"""Pusher-v5: push a cylinder to its goal with a seven-joint arm; an episode ends by its time limit alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.norms import norm, squared_norm
from es_flipout.envs.mujoco.task import Fields, MujocoTask

VELOCITY_NOISE = 0.005
MIN_GOAL_DISTANCE = 0.17
"""The cylinder starts at least this far from its goal, in meters."""
ARM_JOINTS = 7
"""Joints of the arm; the last four coordinates are two each for the cylinder and the goal."""


class Pusher(MujocoTask):
    """Gymnasium's PusherEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel", "xpos")

    def __init__(
        self,
        xml_file: str = "pusher_v5.xml",
        frame_skip: int = 5,
        reward_near_weight: float = 0.5,
        reward_dist_weight: float = 1.0,
        reward_control_weight: float = 0.1,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reward_near_weight = reward_near_weight
        self.reward_dist_weight = reward_dist_weight
        self.reward_control_weight = reward_control_weight
        self.tip, self.cylinder, self.goal = (self.body(name) for name in ("tips_arm", "object", "goal"))

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        cylinder = np.zeros(2)
        while np.linalg.norm(cylinder) <= MIN_GOAL_DISTANCE:
            cylinder[0] = rng.uniform(-0.3, 0)
            cylinder[1] = rng.uniform(-0.2, 0.2)
        qpos = self.init_qpos.copy()
        qpos[-4:-2] = cylinder
        qpos[-2:] = 0
        qvel = self.init_qvel + rng.uniform(-VELOCITY_NOISE, VELOCITY_NOISE, self.model.nv)
        qvel[-4:] = 0
        return qpos, qvel

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        xpos = fields["xpos"]
        return (
            fields["qpos"][:, :ARM_JOINTS],
            fields["qvel"][:, :ARM_JOINTS],
            xpos[:, self.tip],
            xpos[:, self.cylinder],
            xpos[:, self.goal],
        )

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        xpos = fields["xpos"]
        cylinder = xpos[:, self.cylinder]
        near = self.reward_near_weight * norm(cylinder - xpos[:, self.tip])
        distance = self.reward_dist_weight * norm(cylinder - xpos[:, self.goal])
        control = self.reward_control_weight * squared_norm(actions)
        info = {"reward_dist": -distance, "reward_ctrl": -control, "reward_near": -near}
        return -(distance + control + near), info
