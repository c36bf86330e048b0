"""Humanoid-v5: walk forward without falling; the episode ends when the torso leaves its height range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.mujoco.task import Fields, MujocoTask

FREE_JOINT_DOFS = 6
"""Degrees of freedom of the root, which no actuator drives."""


class Humanoid(MujocoTask):
    """Gymnasium's HumanoidEnv (v5), with its keyword arguments and their meaning.

    Contact forces are read, and the slower engine that provides them is used, only if the observation has
    them or the contact cost has a weight.
    """

    env_id = "Humanoid-v5"

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
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight = forward_reward_weight
        self.ctrl_cost_weight = ctrl_cost_weight
        self.contact_cost_weight = contact_cost_weight
        self.min_contact_cost, self.max_contact_cost = contact_cost_range
        self.healthy_reward = healthy_reward
        self.terminate_when_unhealthy = terminate_when_unhealthy
        self.min_healthy_z, self.max_healthy_z = healthy_z_range
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 2 if exclude_current_positions_from_observation else 0
        included = {
            "cinert": include_cinert_in_observation,
            "cvel": include_cvel_in_observation,
            "qfrc_actuator": include_qfrc_actuator_in_observation,
            "cfrc_ext": include_cfrc_ext_in_observation,
        }
        self._observed = [name for name, is_included in included.items() if is_included]
        self.fields = ["qpos", "qvel", "xipos", *self._observed]
        if contact_cost_weight != 0 and "cfrc_ext" not in self.fields:
            self.fields.append("cfrc_ext")
        self._body_weights = torch.from_numpy(self.model.body_mass / self.model.body_mass.sum())

    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `MujocoTask.initial_state`."""
        return self._uniform_around_start(rng, self.reset_noise_scale)

    def observe(self, fields: Fields) -> Sequence[Tensor]:
        """See `MujocoTask.observe`."""
        parts = [fields["qpos"][:, self.skipped_qpos :], fields["qvel"]]
        for name in self._observed:
            # Row 0 of the body fields is the world; the first entries of qfrc_actuator are the root's.
            first = FREE_JOINT_DOFS if name == "qfrc_actuator" else 1
            parts.append(fields[name][:, first:])
        return parts

    def locate(self, fields: Fields) -> Tensor:
        """Returns the centre of mass on the ground, [N, 2]."""
        return torch.einsum("b,nbc->nc", self._body_weights, fields["xipos"][:, :, :2])

    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MujocoTask.reward`."""
        velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * velocity[:, 0]
        survive = self.healthy_reward * self._is_healthy(fields).to(torch.float64)
        control = self.ctrl_cost_weight * actions.to(torch.float64).square().sum(dim=1)
        if self.contact_cost_weight != 0:
            contact = self.contact_cost_weight * fields["cfrc_ext"].square().sum(dim=(1, 2))
        else:
            contact = torch.zeros_like(forward)
        contact = contact.clamp(self.min_contact_cost, self.max_contact_cost)
        info = {
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
        }
        return forward + survive - (control + contact), info

    def terminated(self, fields: Fields) -> Tensor:
        """See `MujocoTask.terminated`."""
        if not self.terminate_when_unhealthy:
            return super().terminated(fields)
        return ~self._is_healthy(fields)

    def _is_healthy(self, fields: Fields) -> Tensor:
        height = fields["qpos"][:, 2]
        return (self.min_healthy_z < height) & (height < self.max_healthy_z)
