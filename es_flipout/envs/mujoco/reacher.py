"""Reacher-v5: bring the fingertip of a two-link arm to a target; an episode ends by its time limit alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.norms import norm, squared_norm
from es_flipout.envs.mujoco.task import Fields, MujocoTask

POSITION_NOISE = 0.1
VELOCITY_NOISE = 0.005
TARGET_RADIUS = 0.2
"""The target is drawn uniformly from the disc of this radius around the shoulder, in meters."""
ARM_JOINTS = 2
"""Joints of the arm; the remaining ones are the target's."""


class Reacher(MujocoTask):
    """Gymnasium's ReacherEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel", "xpos")
    is_exact = False  # sines and cosines: NumPy and torch differ in the last bit

    def __init__(
        self,
        xml_file: str = "reacher.xml",
        frame_skip: int = 2,
        reward_dist_weight: float = 1.0,
        reward_control_weight: float = 1.0,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reward_dist_weight = reward_dist_weight
        self.reward_control_weight = reward_control_weight
        self.fingertip, self.target = self.body("fingertip"), self.body("target")

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        qpos = self.init_qpos + rng.uniform(-POSITION_NOISE, POSITION_NOISE, self.model.nq)
        target = rng.uniform(-TARGET_RADIUS, TARGET_RADIUS, 2)
        while np.linalg.norm(target) >= TARGET_RADIUS:
            target = rng.uniform(-TARGET_RADIUS, TARGET_RADIUS, 2)
        qpos[-2:] = target
        qvel = self.init_qvel + rng.uniform(-VELOCITY_NOISE, VELOCITY_NOISE, self.model.nv)
        qvel[-2:] = 0
        return qpos, qvel

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        qpos, qvel = fields["qpos"], fields["qvel"]
        angles = qpos[:, :ARM_JOINTS]
        return (
            angles.cos(),
            angles.sin(),
            qpos[:, ARM_JOINTS:],
            qvel[:, :ARM_JOINTS],
            self._from_target(fields)[:, :2],
        )

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distance = self.reward_dist_weight * norm(self._from_target(fields))
        control = self.reward_control_weight * squared_norm(actions)
        return -(distance + control), {"reward_dist": -distance, "reward_ctrl": -control}

    def _from_target(self, fields: Fields) -> Tensor:
        return fields["xpos"][:, self.fingertip] - fields["xpos"][:, self.target]
