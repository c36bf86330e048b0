"""HumanoidStandup-v5: rise from lying on the back; an episode ends by its time limit alone."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.humanoid_body import HumanoidBody
from es_flipout.envs.mujoco.task import Fields


class HumanoidStandup(HumanoidBody):
    """Gymnasium's HumanoidStandupEnv (v5), with its keyword arguments and their meaning.

    `uph_cost_weight` has no effect, as in Gymnasium, which accepts it but never reads it.
    """

    def __init__(
        self,
        xml_file: str = "humanoidstandup.xml",
        frame_skip: int = 5,
        uph_cost_weight: float = 1.0,
        ctrl_cost_weight: float = 0.1,
        impact_cost_weight: float = 0.5e-6,
        impact_cost_range: tuple[float, float] = (-math.inf, 10.0),
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
            impact_cost_weight,
            impact_cost_range,
            reset_noise_scale,
            exclude_current_positions_from_observation,
            {
                "cinert": include_cinert_in_observation,
                "cvel": include_cvel_in_observation,
                "qfrc_actuator": include_qfrc_actuator_in_observation,
                "cfrc_ext": include_cfrc_ext_in_observation,
            },
        )

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Height divided by the length of a substep, as in Gymnasium: not a velocity.
        rise = fields["qpos"][:, 2] / float(self.model.opt.timestep)
        control = self.control_cost(actions)
        impact = self.contact_cost(fields)
        info = {"reward_linup": rise, "reward_quadctrl": -control, "reward_impact": -impact}
        return rise - control - impact + 1, info

    @override
    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        qpos = fields["qpos"]
        position = {
            "x_position": qpos[:, 0].clone(),
            "y_position": qpos[:, 1].clone(),
            "z_distance_from_origin": qpos[:, 2] - float(self.init_qpos[2]),
        }
        return position | super().state_info(fields)
