"""The contract of a MuJoCo task: observation, reward and termination over batched fields.

A task is written once, in torch, for all N simulations of whichever engine runs it. It names the
MjData fields that it reads; what they mean, and when they are current, is MjData's own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

Fields = Mapping[str, Tensor]
"""MjData fields by name, float64 [N, ...]."""


class MujocoTask(ABC):
    """One Gymnasium MuJoCo task.

    Attributes:
        env_id: the Gymnasium id whose observations, rewards and terminations the task reproduces.
        model: the compiled MuJoCo model.
        frame_skip: substeps an env step.
        fields: names of the MjData fields that the task reads.
        needs_contact_forces: whether cfrc_ext is among them, which only some engines provide.
    """

    env_id: ClassVar[str]
    fields: Sequence[str]

    def __init__(self, xml_file: str, frame_skip: int) -> None:
        """Compiles the model.

        Args:
            xml_file: an MJCF file: a path, or a name among Gymnasium's assets.
            frame_skip: substeps an env step.

        Raises:
            OSError: if there is no such file.
            ValueError: if the model does not compile, or frame_skip is not a positive integer.
        """
        if not isinstance(frame_skip, int) or frame_skip < 1:
            raise ValueError(f"frame_skip must be an integer >= 1, got {frame_skip}")
        with deprecations_silenced():
            self.model = mujoco.MjModel.from_xml_path(expand_model_path(xml_file))
        self.frame_skip = frame_skip
        data = mujoco.MjData(self.model)
        self.init_qpos: NDArray[np.float64] = data.qpos.copy()
        self.init_qvel: NDArray[np.float64] = data.qvel.copy()

    @property
    def dt(self) -> float:
        """Simulated seconds an env step."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def needs_contact_forces(self) -> bool:
        """Whether the task reads cfrc_ext."""
        return "cfrc_ext" in self.fields

    @abstractmethod
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos [nq] and qvel [nv] of a new episode, in the same order of draws as Gymnasium."""

    def _uniform_around_start(
        self, rng: np.random.Generator, scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos, then qvel, each coordinate within `scale` of where the model starts."""
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + rng.uniform(-scale, scale, self.model.nv)
        return qpos, qvel

    @abstractmethod
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        """Returns the parts of the observation, each [N, ...]; flattened and joined they are [N, O]."""

    def locate(self, fields: Fields) -> Tensor:
        """Returns where each simulation is, [N, ...]; `reward` gets it from before and after the step."""
        return fields["qpos"][:, :0]

    @abstractmethod
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the reward of the step and the terms it is made of.

        Args:
            before: `locate` before the step.
            after: `locate` after the step.
            fields: the fields after the step.
            actions: the actions as they were given, [N, A], any floating dtype.

        Returns:
            The reward, float64 [N], and Gymnasium's info entries for it, [N] each.
        """

    def terminated(self, fields: Fields) -> Tensor:
        """Returns which simulations have ended by the task's own rule, bool [N]."""
        return torch.zeros(fields["qpos"].shape[0], dtype=torch.bool)
