"""The contract of a MuJoCo task: observation, reward and termination over batched fields.

A task is written once, in torch, for all N envs, any engine and any device. It names the MjData fields that
it reads, which mean what they mean in MuJoCo. On a GPU its methods from `observe` on are recorded as a CUDA
graph: they must not read values there (by `if`, `item()`, or a mask as an index), nor use constants from the
host other than numbers.
"""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import has_torch_function_unary

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

Fields = Mapping[str, Tensor]
"""MjData fields by name, [N, ...], float64 (float32 with engine "warp"): live, read-only views."""


class MujocoTask(ABC):
    """A MuJoCo task: a model, and what is observed, rewarded and terminal in it.

    On the CPU, `observe`, `locate`, `reward` and `terminated` are compiled if their operations can be
    (`MujocoVectorEnv.not_fused` says why not). What they read from the task is then as it was when the
    environment was made.

    Attributes:
        model: the compiled MuJoCo model.
        frame_skip: substeps per env step.
        fields: names of the MjData fields that the task reads; qpos is always available.
        info_fields: names of further fields that `state_info` reads.
        is_exact: whether observations, rewards and terminations on the CPU equal those of `gymnasium.make`
            to the last bit. A run then measures its scores before the last in native envs. A task of your
            own is compared with a single env of itself, and equal unless it rounds a row differently in
            other company.
    """

    fields: Sequence[str]
    info_fields: Sequence[str] = ()
    is_exact: bool = True

    def __init__(self, xml_file: str | os.PathLike[str], frame_skip: int) -> None:
        """Compiles the model.

        Args:
            xml_file: an MJCF file: a path, or a name among Gymnasium's assets.
            frame_skip: substeps per env step.

        Raises:
            OSError: if there is no such file.
            TypeError: if xml_file is not a path.
            ValueError: if the model does not compile, or frame_skip is not a positive integer.
        """
        if not isinstance(frame_skip, int | np.integer) or isinstance(frame_skip, bool) or frame_skip < 1:
            raise ValueError(f"frame_skip must be an integer >= 1, got {frame_skip!r}")
        self.model = _compiled(xml_file)
        self.frame_skip = int(frame_skip)
        data = mujoco.MjData(self.model)
        self.init_qpos: NDArray[np.float64] = data.qpos.copy()
        self.init_qvel: NDArray[np.float64] = data.qvel.copy()

    @cached_property
    def dt(self) -> float:
        """Simulated seconds per env step, computed when it is first read."""
        return float(self.model.opt.timestep) * self.frame_skip

    def body(self, body: int | str) -> int:
        """Returns the index of a body in the body fields (xpos, cfrc_ext ...).

        Args:
            body: its name, or the index itself.

        Raises:
            ValueError: if the model has no such body.
        """
        i: int
        i = body if isinstance(body, int) else mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, body)
        if not 0 <= i < self.model.nbody:
            names = [self.model.body(k).name for k in range(self.model.nbody)]
            close = difflib.get_close_matches(str(body), names, n=1) or names
            raise ValueError(f"the model has no body {body!r}; it has {', '.join(map(repr, close))}")
        return i

    @abstractmethod
    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos [nq] and qvel [nv] at the start of an episode.

        Gymnasium's tasks draw in Gymnasium's order, so that a seed means the same start there and here.
        """

    def _uniform_around_start(
        self, rng: np.random.Generator, scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos, then qvel, each coordinate within `scale` of the initial state."""
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + rng.uniform(-scale, scale, self.model.nv)
        return qpos, qvel

    def _uniform_and_normal_around_start(
        self, rng: np.random.Generator, scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draws qpos within `scale` of the initial state, then qvel with standard deviation `scale`."""
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.model.nq)
        qvel = self.init_qvel + scale * rng.standard_normal(self.model.nv)
        return qpos, qvel

    @abstractmethod
    def observe(self, fields: Fields) -> Sequence[Tensor] | Tensor:
        """Returns the observation, or its parts, [N] or [N, ...] each, which are joined to [N, O]."""

    def locate(self, fields: Fields) -> Tensor:
        """Returns where each env is, [N, ...]; `reward` gets copies from before and after the step."""
        return fields["qpos"][:, :0]

    @abstractmethod
    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the reward of the step and its terms.

        Args:
            before: `locate` before the step.
            after: `locate` after the step.
            fields: the fields after the step.
            actions: the actions as given to `step`, [N, A], any floating dtype.

        Returns:
            The reward, [N], and info entries, [N, ...] each: its terms, and values that it was computed from.
        """

    def state_info(self, fields: Fields) -> dict[str, Tensor]:
        """Returns further info entries, [N, ...] each, which depend on the state alone.

        They are computed after a step and after a reset, if info is wanted. They must not be views of
        fields, which change with the next step.
        """
        return {}

    def terminated(self, fields: Fields) -> Tensor:
        """Returns which envs have terminated by the task's rules, bool [N]."""
        return fields["qpos"].new_zeros(fields["qpos"].shape[0], dtype=torch.bool)


def _compiled(xml_file: str | os.PathLike[str]) -> mujoco.MjModel:
    """Compiles an MJCF file; errors name it."""
    if not isinstance(xml_file, str | os.PathLike):
        raise TypeError(f"xml_file must be the path of an MJCF file, got {xml_file!r}")
    try:
        path = expand_model_path(os.fspath(xml_file))
    except OSError as error:
        raise OSError(
            f"{error} (names that begin neither with / nor with . are Gymnasium's models)"
        ) from error
    if Path(path).is_dir():
        raise OSError(f"xml_file must be an MJCF file, but {path} is a folder")
    try:
        with deprecations_silenced():
            return mujoco.MjModel.from_xml_path(path)
    except ValueError as error:
        raise ValueError(f"{path} does not compile: {' '.join(str(error).split())}") from error


def numpy_computes(values: Tensor) -> bool:
    """Returns whether NumPy is to compute with values: as in Gymnasium's tasks, on the CPU.

    The last bits of a sum depend on the order of addition. When hooks are compiled, torch stands in: what is
    compiled adds in NumPy's order.
    """
    return values.device.type == "cpu" and not has_torch_function_unary(values)


def squared_norm(values: Tensor) -> Tensor:
    """Returns the sum of each env's squared values (actions, contact forces ...), [N], in their dtype."""
    flat = values.flatten(1)
    if numpy_computes(flat):
        return torch.from_numpy(np.square(flat.numpy()).sum(axis=1))
    return flat.square().sum(dim=1)


def norm(values: Tensor) -> Tensor:
    """Returns the Euclidean norm of each env's values [N, D], [N], in their dtype."""
    if numpy_computes(values):  # torch's square root is not the nearest number on every processor
        return torch.from_numpy(np.sqrt(np.square(values.numpy()).sum(axis=1)))
    norms: Tensor = torch.linalg.vector_norm(values, dim=1)
    return norms


def ground_position(fields: Fields) -> dict[str, Tensor]:
    """Returns the info entries about the root on the ground: x, y and the distance from the origin."""
    position = fields["qpos"][:, :2]
    return {
        "x_position": position[:, 0].clone(),
        "y_position": position[:, 1].clone(),
        "distance_from_origin": norm(position),
    }
