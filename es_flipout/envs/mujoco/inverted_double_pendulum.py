"""InvertedDoublePendulum-v5: keep two linked poles upright; the episode ends when their tip sinks to 1 m."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.task import Fields, MujocoTask

MIN_TIP_HEIGHT = 1.0
UPRIGHT_TIP_HEIGHT = 2.0
"""Height that the distance penalty pulls the tip to: above its reach, 1.2 m over the cart."""
MAX_OBSERVED = 10.0
"""Velocities and the constraint force are clipped to this magnitude in the observation."""


class InvertedDoublePendulum(MujocoTask):
    """Gymnasium's InvertedDoublePendulumEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel", "site_xpos", "qfrc_constraint")
    is_exact = False  # sines, cosines and powers: NumPy and torch differ in the last bit

    def __init__(
        self,
        xml_file: str = "inverted_double_pendulum.xml",
        frame_skip: int = 5,
        healthy_reward: float = 10.0,
        reset_noise_scale: float = 0.1,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.healthy_reward = healthy_reward
        self.reset_noise_scale = reset_noise_scale

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_and_normal_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        position, angles = fields["qpos"][:, :1], fields["qpos"][:, 1:]
        return (
            position,
            angles.sin(),
            angles.cos(),
            fields["qvel"].clamp(-MAX_OBSERVED, MAX_OBSERVED),
            fields["qfrc_constraint"][:, :1].clamp(-MAX_OBSERVED, MAX_OBSERVED),
        )

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tip, qvel = fields["site_xpos"][:, 0], fields["qvel"]
        distance = 0.01 * tip[:, 0].square() + (tip[:, 2] - UPRIGHT_TIP_HEIGHT).square()
        velocity = 1e-3 * qvel[:, 1].square() + 5e-3 * qvel[:, 2].square()
        survive = self.healthy_reward * (~self.terminated(fields)).to(torch.float64)
        info = {
            "reward_survive": survive,
            "distance_penalty": -distance,
            "velocity_penalty": -velocity,
        }
        return survive - distance - velocity, info

    @override
    def terminated(self, fields: Fields) -> Tensor:
        return fields["site_xpos"][:, 0, 2] <= MIN_TIP_HEIGHT
