"""Humanoid-v5: walk forward without falling; the episode ends when the torso leaves its height range."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.healthy import HealthyTask, strictly_within
from es_flipout.envs.mujoco.humanoid_body import HumanoidBody
from es_flipout.envs.mujoco.norms import ground_position, numpy_computes
from es_flipout.envs.mujoco.task import Fields


class Humanoid(HumanoidBody, HealthyTask):
    """Gymnasium's HumanoidEnv (v5), with its keyword arguments and their meaning."""

    def __init__(
        self,
        xml_file: str = "humanoid.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1.25,
        ctrl_cost_weight: float = 0.1,
        contact_cost_weight: float = 5e-7,
        contact_cost_range: tuple[float, float] = (-math.inf, 10.0),
        healthy_reward: float = 5.0,
        terminate_when_unhealthy: bool = True,
        healthy_z_range: tuple[float, float] = (1.0, 2.0),
        reset_noise_scale: float = 1e-2,
        exclude_current_positions_from_observation: bool = True,
        include_cinert_in_observation: bool = True,
        include_cvel_in_observation: bool = True,
        include_qfrc_actuator_in_observation: bool = True,
        include_cfrc_ext_in_observation: bool = True,
    ) -> None:
        super().__init__(
            xml_file,
            frame_skip,
            ctrl_cost_weight,
            contact_cost_weight,
            contact_cost_range,
            reset_noise_scale,
            exclude_current_positions_from_observation,
            {
                "cinert": include_cinert_in_observation,
                "cvel": include_cvel_in_observation,
                "qfrc_actuator": include_qfrc_actuator_in_observation,
                "cfrc_ext": include_cfrc_ext_in_observation,
            },
        )
        self.forward_reward_weight = forward_reward_weight
        self.healthy_reward = healthy_reward
        self.terminate_when_unhealthy = terminate_when_unhealthy
        self.min_healthy_z, self.max_healthy_z = healthy_z_range
        self.fields = [*self.fields, "xipos"]
        self._total_mass = float(self.model.body_mass.sum())
        self._masses = torch.from_numpy(self.model.body_mass.copy())
        self._cached_masses = self._masses

    @override
    def locate(self, fields: Fields) -> Tensor:
        """Returns the center of mass on the ground, [N, 2]."""
        xipos = fields["xipos"]
        if self._cached_masses.device != xipos.device or self._cached_masses.dtype != xipos.dtype:
            self._cached_masses = self._masses.to(xipos)
        if numpy_computes(xipos):
            moments = torch.from_numpy(np.einsum("b,nbj->nj", self._cached_masses.numpy(), xipos.numpy()))
        else:
            moments = (self._cached_masses.unsqueeze(1) * xipos).sum(dim=1)
        return moments[:, :2] / self._total_mass

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * velocity[:, 0]
        survive = self.survival_reward(fields)
        control = self.control_cost(actions)
        contact = self.contact_cost(fields)
        info = {
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
        }
        return forward + survive - (control + contact), info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        return ground_position(fields) | super().state_info(fields)

    @override
    def is_healthy(self, fields: Fields) -> Tensor:
        return strictly_within(fields["qpos"][:, 2], self.min_healthy_z, self.max_healthy_z)
