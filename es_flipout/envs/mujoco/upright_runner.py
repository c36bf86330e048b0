"""What Hopper and Walker2d share: run forward in a vertical plane while the torso stays up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.healthy import HealthyTask, strictly_within
from es_flipout.envs.mujoco.norms import squared_norm
from es_flipout.envs.mujoco.task import Fields

MAX_OBSERVED_VELOCITY = 10.0
"""Velocities are clipped to this magnitude in the observation, and only there."""


class UprightRunner(HealthyTask):
    """A planar runner whose first coordinates are the torso's x, z and pitch."""

    fields = ("qpos", "qvel")

    def __init__(
        self,
        xml_file: str,
        frame_skip: int,
        forward_reward_weight: float,
        ctrl_cost_weight: float,
        healthy_reward: float,
        terminate_when_unhealthy: bool,
        healthy_z_range: tuple[float, float],
        healthy_angle_range: tuple[float, float],
        reset_noise_scale: float,
        exclude_current_positions_from_observation: bool,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight = forward_reward_weight
        self.ctrl_cost_weight = ctrl_cost_weight
        self.healthy_reward = healthy_reward
        self.terminate_when_unhealthy = terminate_when_unhealthy
        self.min_healthy_z, self.max_healthy_z = healthy_z_range
        self.min_healthy_angle, self.max_healthy_angle = healthy_angle_range
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 1 if exclude_current_positions_from_observation else 0

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        velocities = fields["qvel"].clamp(-MAX_OBSERVED_VELOCITY, MAX_OBSERVED_VELOCITY)
        return fields["qpos"][:, self.skipped_qpos :], velocities

    @override
    def locate(self, fields: Fields) -> Tensor:
        """Returns the x coordinate of the torso, [N]."""
        return fields["qpos"][:, 0]

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * x_velocity
        survive = self.survival_reward(fields)
        control = self.ctrl_cost_weight * squared_norm(actions)
        info = {
            "x_velocity": x_velocity,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_survive": survive,
        }
        return forward + survive - control, info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        qpos = fields["qpos"]
        return {
            "x_position": qpos[:, 0].clone(),
            "z_distance_from_origin": qpos[:, 1] - float(self.init_qpos[1]),
        }

    @override
    def is_healthy(self, fields: Fields) -> Tensor:
        height, angle = fields["qpos"][:, 1], fields["qpos"][:, 2]
        up = strictly_within(height, self.min_healthy_z, self.max_healthy_z)
        return up & strictly_within(angle, self.min_healthy_angle, self.max_healthy_angle)
