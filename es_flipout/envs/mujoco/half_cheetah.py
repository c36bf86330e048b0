"""HalfCheetah-v5: run forward; an episode ends by its time limit alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.norms import squared_norm
from es_flipout.envs.mujoco.task import Fields, MujocoTask


class HalfCheetah(MujocoTask):
    """Gymnasium's HalfCheetahEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel")

    def __init__(
        self,
        xml_file: str = "half_cheetah.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 0.1,
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight = forward_reward_weight
        self.ctrl_cost_weight = ctrl_cost_weight
        self.reset_noise_scale = reset_noise_scale
        self.skipped_qpos = 1 if exclude_current_positions_from_observation else 0

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_and_normal_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        return fields["qpos"][:, self.skipped_qpos :], fields["qvel"]

    @override
    def locate(self, fields: Fields) -> Tensor:
        """Returns the x coordinate of the front tip, [N]."""
        return fields["qpos"][:, 0]

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * x_velocity
        control = self.ctrl_cost_weight * squared_norm(actions)
        info = {"x_velocity": x_velocity, "reward_forward": forward, "reward_ctrl": -control}
        return forward - control, info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        return {"x_position": fields["qpos"][:, 0].clone()}
