"""Swimmer-v5: swim forward with three links; an episode ends by its time limit alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.norms import ground_position, squared_norm
from es_flipout.envs.mujoco.task import Fields, MujocoTask


class Swimmer(MujocoTask):
    """Gymnasium's SwimmerEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel")

    def __init__(
        self,
        xml_file: str = "swimmer.xml",
        frame_skip: int = 4,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 1e-4,
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight = forward_reward_weight
        self.ctrl_cost_weight = ctrl_cost_weight
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 2 if exclude_current_positions_from_observation else 0

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        return fields["qpos"][:, self.skipped_qpos :], fields["qvel"]

    @override
    def locate(self, fields: Fields) -> Tensor:
        """Returns x and y of the front tip, [N, 2]."""
        return fields["qpos"][:, :2]

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * velocity[:, 0]
        control = self.ctrl_cost_weight * squared_norm(actions)
        info = {
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -control,
        }
        return forward - control, info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        return ground_position(fields)
