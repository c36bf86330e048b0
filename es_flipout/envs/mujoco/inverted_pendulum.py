"""InvertedPendulum-v5: keep the pole upright; the episode ends when it leans past 0.2 rad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.healthy import is_finite
from es_flipout.envs.mujoco.task import Fields, MujocoTask

MAX_ANGLE = 0.2
"""Largest lean of the pole, radians."""


class InvertedPendulum(MujocoTask):
    """Gymnasium's InvertedPendulumEnv (v5), with its keyword arguments and their meaning."""

    fields = ("qpos", "qvel")

    def __init__(
        self,
        xml_file: str = "inverted_pendulum.xml",
        frame_skip: int = 2,
        reset_noise_scale: float = 0.01,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reset_noise_scale = reset_noise_scale

    @override
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._uniform_around_start(rng, self.reset_noise_scale)

    @override
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        return fields["qpos"], fields["qvel"]

    @override
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        upright = (~self.terminated(fields)).to(torch.float64)
        return upright, {"reward_survive": upright}

    @override
    def terminated(self, fields: Fields) -> Tensor:
        return ~is_finite(fields) | (fields["qpos"][:, 1].abs() > MAX_ANGLE)
