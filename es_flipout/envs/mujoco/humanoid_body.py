"""What Humanoid and HumanoidStandup share: initial state, observation, costs and tendons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.norms import squared_norm
from es_flipout.envs.mujoco.task import Fields, MujocoTask

FREE_JOINT_DOFS = 6
"""Degrees of freedom of the root, which no actuator drives."""


class HumanoidBody(MujocoTask):
    """A humanoid task.

    It reads contact forces, and so needs the slower engine that provides them, only if the observation has
    them or the contact cost has a weight.
    """

    info_fields = ("ten_length", "ten_velocity")

    def __init__(
        self,
        xml_file: str,
        frame_skip: int,
        ctrl_cost_weight: float,
        contact_cost_weight: float,
        contact_cost_range: tuple[float, float],
        reset_noise_scale: float,
        exclude_current_positions_from_observation: bool,
        included: Mapping[str, bool],
    ) -> None:
        """Compiles the model.

        Args:
            xml_file: see `MujocoTask`.
            frame_skip: see `MujocoTask`.
            ctrl_cost_weight: weight of the squared controls.
            contact_cost_weight: weight of the squared contact forces.
            contact_cost_range: bounds of the weighted contact cost.
            reset_noise_scale: largest distance of each coordinate from the model's initial state.
            exclude_current_positions_from_observation: whether x and y are left out of the observation.
            included: the fields that the observation may have besides qpos and qvel, in order, and whether
                it has them.
        """
        super().__init__(xml_file, frame_skip)
        self.ctrl_cost_weight = ctrl_cost_weight
        self.contact_cost_weight = contact_cost_weight
        self.min_contact_cost, self.max_contact_cost = contact_cost_range
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 2 if exclude_current_positions_from_observation else 0
        self._observed = [name for name, is_included in included.items() if is_included]
        self.fields = ["qpos", "qvel", *self._observed]
        if contact_cost_weight != 0 and "cfrc_ext" not in self.fields:
            self.fields.append("cfrc_ext")

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        parts = [fields["qpos"][:, self.skipped_qpos :], fields["qvel"]]
        for name in self._observed:
            # Body 0 is the world; the first entries of qfrc_actuator are the root's.
            first = FREE_JOINT_DOFS if name == "qfrc_actuator" else 1
            parts.append(fields[name][:, first:])
        return parts

    def control_cost(self, actions: Tensor) -> Tensor:
        """Returns the cost of the controls, float64 [N], which are squared in MjData's float64."""
        return self.ctrl_cost_weight * squared_norm(actions.to(torch.float64))

    def contact_cost(self, fields: Fields) -> Tensor:
        """Returns the cost of the contact forces, float64 [N]."""
        if self.contact_cost_weight != 0:
            cost = self.contact_cost_weight * squared_norm(fields["cfrc_ext"])
        else:
            cost = fields["qpos"].new_zeros(len(fields["qpos"]))
        return cost.clamp(self.min_contact_cost, self.max_contact_cost)

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        return {
            "tendon_length": fields["ten_length"].clone(),
            "tendon_velocity": fields["ten_velocity"].clone(),
        }
