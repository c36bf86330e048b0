"""The contract of a MuJoCo task: observation, reward and termination over batched fields.

A task is written once, in torch, for all N simulations of whichever engine runs it, on whichever device. It
names the MjData fields that it reads; what they mean, and when they are current, is MjData's own business.
Its methods from `observe` on are recorded as a CUDA graph on a GPU: they must not look at values there (by
`if`, `item()`, or a mask as an index), nor take constants from the host other than numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

Fields = Mapping[str, Tensor]
"""MjData fields by name, [N, ...], float64 or, of engine "warp", float32: live views, to be read and never
written."""


class MujocoTask(ABC):
    """One MuJoCo task: a model, and what is observed, rewarded and terminal in it.

    Attributes:
        model: the compiled MuJoCo model.
        frame_skip: substeps an env step.
        fields: names of the MjData fields that the task reads; qpos is always there.
        info_fields: names of those that `state_info` reads besides.
        needs_contact_forces: whether cfrc_ext is among them, which only some engines provide.
    """

    fields: Sequence[str]
    info_fields: Sequence[str] = ()

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

    @cached_property
    def dt(self) -> float:
        """Simulated seconds an env step; those of the model when it is first asked for."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def needs_contact_forces(self) -> bool:
        """Whether the task reads cfrc_ext."""
        return "cfrc_ext" in self.fields

    def body(self, body: int | str) -> int:
        """Returns the row of a body in the body fields (xpos, cfrc_ext ...).

        Args:
            body: its name, or the row itself.

        Raises:
            ValueError: if the model has no such body.
        """
        row: int
        row = body if isinstance(body, int) else mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, body)
        if not 0 <= row < self.model.nbody:
            raise ValueError(f"the model has no body {body!r}")
        return row

    def seeded_state(self, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns qpos [nq] and qvel [nv] that an episode with a reset seed starts from."""
        return self.initial_state(seeding.np_random(seed)[0])

    @abstractmethod
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos [nq] and qvel [nv] of a new episode.

        The tasks of Gymnasium draw in the same order as there, so that a seed means the same start.
        """

    def _uniform_around_start(
        self, rng: np.random.Generator, scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos, then qvel, each coordinate within `scale` of where the model starts."""
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + rng.uniform(-scale, scale, self.model.nv)
        return qpos, qvel

    def _uniform_and_normal_around_start(
        self, rng: np.random.Generator, scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos within `scale` of where the model starts, then qvel with standard deviation `scale`."""
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + scale * rng.standard_normal(self.model.nv)
        return qpos, qvel

    @abstractmethod
    def observe(self, fields: Fields) -> Sequence[Tensor]:
        """Returns the parts of the observation, each [N, ...]; flattened and joined they are [N, O]."""

    def observation(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        """Returns the whole observation, [N, O], in a floating dtype."""
        return torch.cat([part.to(dtype).flatten(1) for part in self.observe(fields)], dim=1)

    def locate(self, fields: Fields) -> Tensor:
        """Returns where each simulation is, [N, ...]; `reward` gets copies from before and after the step."""
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
            The reward, floating [N], and info entries for it, [N] each: its terms, and what it was computed
            from before and after the step.
        """

    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        """Returns further info entries, [N, ...] each, which depend on the state alone.

        They are computed only if they are asked for, after a step and after a reset. They are tensors of
        their own, no views: fields change with the next step, and what was returned must not.
        """
        return {}

    def terminated(self, fields: Fields) -> Tensor:
        """Returns which simulations have ended by the task's own rule, bool [N]."""
        return fields["qpos"].new_zeros(fields["qpos"].shape[0], dtype=torch.bool)


def squared_norm(actions: Tensor) -> Tensor:
    """Returns the sum of the squared actions of each row, [N], in the actions' own dtype.

    On the CPU NumPy adds them up, because the last bits of a float32 sum depend on the order of addition,
    and the tasks of Gymnasium let NumPy add.
    """
    if actions.device.type == "cpu":
        return torch.from_numpy(np.square(actions.numpy()).sum(axis=1))
    return actions.square().sum(dim=1)


def ground_position(fields: Fields) -> dict[str, Tensor]:
    """Returns the info entries of where the root is, seen from above: x, y and how far from the origin."""
    position = fields["qpos"][:, :2]
    return {
        "x_position": position[:, 0].clone(),
        "y_position": position[:, 1].clone(),
        "distance_from_origin": torch.linalg.vector_norm(position, dim=1),
    }
