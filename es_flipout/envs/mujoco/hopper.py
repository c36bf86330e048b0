"""Hopper-v5: hop forward on one leg; the episode ends when the torso sinks or leans or the state blows up."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.healthy import strictly_within
from es_flipout.envs.mujoco.task import Fields
from es_flipout.envs.mujoco.upright_runner import UprightRunner


class Hopper(UprightRunner):
    """Gymnasium's HopperEnv (v5), with its keyword arguments and their meaning."""

    def __init__(
        self,
        xml_file: str = "hopper.xml",
        frame_skip: int = 4,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 1e-3,
        healthy_reward: float = 1.0,
        terminate_when_unhealthy: bool = True,
        healthy_state_range: tuple[float, float] = (-100.0, 100.0),
        healthy_z_range: tuple[float, float] = (0.7, math.inf),
        healthy_angle_range: tuple[float, float] = (-0.2, 0.2),
        reset_noise_scale: float = 5e-3,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(
            xml_file,
            frame_skip,
            forward_reward_weight,
            ctrl_cost_weight,
            healthy_reward,
            terminate_when_unhealthy,
            healthy_z_range,
            healthy_angle_range,
            reset_noise_scale,
            exclude_current_positions_from_observation,
        )
        self.min_healthy_state, self.max_healthy_state = healthy_state_range

    @override
    def is_healthy(self, fields: Fields) -> Tensor:
        # All of the state but where the torso is: x and z.
        state = torch.cat([fields["qpos"][:, 2:], fields["qvel"]], dim=1)
        bounded = strictly_within(state, self.min_healthy_state, self.max_healthy_state).all(dim=1)
        return super().is_healthy(fields) & bounded
