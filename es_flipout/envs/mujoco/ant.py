"""Ant-v5: walk forward on four legs; the episode ends when the torso leaves its height range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.healthy import HealthyTask, is_finite
from es_flipout.envs.mujoco.norms import ground_position, squared_norm
from es_flipout.envs.mujoco.task import Fields


class Ant(HealthyTask):
    """Gymnasium's AntEnv (v5), with its keyword arguments and their meaning.

    It reads contact forces, and so needs the slower engine that provides them, only if the observation has
    them or the contact cost has a weight.
    """

    def __init__(
        self,
        xml_file: str = "ant.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 0.5,
        contact_cost_weight: float = 5e-4,
        healthy_reward: float = 1.0,
        main_body: int | str = 1,
        terminate_when_unhealthy: bool = True,
        healthy_z_range: tuple[float, float] = (0.2, 1.0),
        contact_force_range: tuple[float, float] = (-1.0, 1.0),
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
        include_cfrc_ext_in_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight = forward_reward_weight
        self.ctrl_cost_weight = ctrl_cost_weight
        self.contact_cost_weight = contact_cost_weight
        self.healthy_reward = healthy_reward
        self.main_body = self.body(main_body)
        self.terminate_when_unhealthy = terminate_when_unhealthy
        self.min_healthy_z, self.max_healthy_z = healthy_z_range
        self.min_contact_force, self.max_contact_force = contact_force_range
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 2 if exclude_current_positions_from_observation else 0
        self.observes_contact = include_cfrc_ext_in_observation
        self.fields = ["qpos", "qvel", "xpos"]
        if include_cfrc_ext_in_observation or contact_cost_weight != 0:
            self.fields.append("cfrc_ext")

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_and_normal_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        parts = [fields["qpos"][:, self.skipped_qpos :], fields["qvel"]]
        if self.observes_contact:
            # Body 0 is the world, which is not observed.
            parts.append(self._contact_forces(fields)[:, 1:])
        return parts

    @override
    def locate(self, fields: Fields) -> Tensor:
        """Returns the main body's x and y, [N, 2]."""
        return fields["xpos"][:, self.main_body, :2]

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * velocity[:, 0]
        survive = self.survival_reward(fields)
        control = self.ctrl_cost_weight * squared_norm(actions)
        if self.contact_cost_weight != 0:
            # The world counts too: its 0 is clipped, and a range without 0 makes it nonzero.
            contact = self.contact_cost_weight * squared_norm(self._contact_forces(fields))
        else:
            contact = torch.zeros_like(forward)
        info = {
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
            "reward_survive": survive,
        }
        return forward + survive - (control + contact), info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        return ground_position(fields)

    @override
    def is_healthy(self, fields: Fields) -> Tensor:
        """Returns which envs are healthy, bool [N]; unlike in other tasks, the bounds are included."""
        height = fields["qpos"][:, 2]
        return is_finite(fields) & (self.min_healthy_z <= height) & (height <= self.max_healthy_z)

    def _contact_forces(self, fields: Fields) -> Tensor:
        return fields["cfrc_ext"].clamp(self.min_contact_force, self.max_contact_force)
