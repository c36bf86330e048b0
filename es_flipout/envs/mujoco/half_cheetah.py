"""HalfCheetah-v5: run forward; an episode ends by its time limit alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.mujoco.task import Fields, MujocoTask


class HalfCheetah(MujocoTask):
    """Gymnasium's HalfCheetahEnv (v5), with its keyword arguments and their meaning."""

    env_id = "HalfCheetah-v5"
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

    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `MujocoTask.initial_state`."""
        scale = self.reset_noise_scale
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + scale * rng.standard_normal(self.model.nv)
        return qpos, qvel

    def observe(self, fields: Fields) -> Sequence[Tensor]:
        """See `MujocoTask.observe`."""
        return fields["qpos"][:, self.skipped_qpos :], fields["qvel"]

    def locate(self, fields: Fields) -> Tensor:
        """Returns the x coordinate of the front tip, [N]."""
        return fields["qpos"][:, 0].clone()

    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MujocoTask.reward`."""
        x_velocity = (after - before) / self.dt
        forward = self.forward_reward_weight * x_velocity
        # One after the other, in the action's own dtype, as Gymnasium does: float32 sums depend on order.
        squares = actions.square().unbind(dim=1)
        control = self.ctrl_cost_weight * sum(squares[1:], start=squares[0])
        info = {
            "x_position": after,
            "x_velocity": x_velocity,
            "reward_forward": forward,
            "reward_ctrl": -control,
        }
        return forward - control, info
