"""The contract of a MuJoCo task: observation, reward and termination over batched fields.

A task is written once, in torch, for all N envs, any engine and any device. It names the MjData fields that
it reads, which mean what they mean in MuJoCo. On a GPU its methods from `observe` on are recorded as a CUDA
graph: they must not read values there (by `if`, `item()`, or a mask as an index), nor use constants from the
host other than numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from es_flipout.envs.mujoco.following import free_body
from es_flipout.envs.mujoco.model_names import index_of, joint_slices, sensor_slice
from es_flipout.envs.mujoco.model_source import ModelLike, ModelSource

Fields = Mapping[str, Tensor]
"""By name, [N, ...], float64 (float32 with engine "warp"): MjData's fields, the entries of the episodes' own
state, and "noise"; live, and read-only."""
InitialState = (
    tuple[NDArray[np.float64], NDArray[np.float64]]
    | tuple[NDArray[np.float64], NDArray[np.float64], Mapping[str, ArrayLike]]
)


class MujocoTask(ABC):
    """A MuJoCo task: a model, and what is observed, rewarded and terminal in it.

    `fields`, `initial_state`, `observe` and `reward` are needed. A robot's task may also have

    - a state of its own (commands, targets, a phase, the last action), which `initial_state` begins and
      `update_state` continues; hooks read it among the fields,
    - actions that are no controls: `control` makes controls of them, in `action_range`,
    - randomization: `randomize` draws what is different in an episode, `noise` numbers are new at every step.

    On the CPU, all hooks but `initial_state`, `randomize` and `state_info` are compiled if their operations
    can be (`MujocoVectorEnv.not_fused` says why not). What they read from the task is then as it was when
    the environment was made.

    Attributes:
        model: the compiled MuJoCo model.
        frame_skip: substeps per env step.
        init_qpos: positions in the model's initial state, or in the keyframe, [nq].
        init_qvel: velocities, likewise, [nv].
        init_ctrl: controls, likewise, [nu]: 0 without a keyframe.
        follow: index of the body that pictures follow; the one with the first free joint, or None.
        fields: names of the MjData fields that the task reads; qpos is always available.
        info_fields: names of further fields that `state_info` reads.
        action_range: lowest and highest action, [A] each; None for the range of each actuator's control.
        noise: how many numbers `fields["noise"]` has for each env: standard normal, independent, new after
            every step, the same whenever an episode is played from the same reset seed; 0 in an environment
            that is not randomized.
        is_exact: whether observations, rewards and terminations on the CPU equal those of `gymnasium.make`
            to the last bit. A run then measures its scores before the last in native envs. A task of your
            own is compared with a single env of itself, and equal unless it rounds a row differently in
            other company.
    """

    fields: Sequence[str]
    info_fields: Sequence[str] = ()
    action_range: tuple[ArrayLike, ArrayLike] | None = None
    noise: int = 0
    is_exact: bool = True

    def __init__(
        self,
        model: ModelLike,
        frame_skip: int | None = None,
        *,
        control_frequency: float | None = None,
        keyframe: int | str | None = None,
    ) -> None:
        """Compiles the model.

        Args:
            model: an MJCF file (a path, or a name among Gymnasium's assets), XML text, a `mujoco.MjSpec` or
                a `mujoco.MjModel`.
            frame_skip: substeps per env step.
            control_frequency: env steps per simulated second, instead of frame_skip.
            keyframe: name or index of the keyframe that `init_qpos`, `init_qvel` and `init_ctrl` are of.

        Raises:
            OSError: if there is no such file.
            TypeError: if the model is anything else.
            ValueError: if the model does not compile, has no such keyframe, or the number of substeps is not
                a positive integer.
        """
        self._source = ModelSource(model)
        self.model = self._source.compile()
        self.frame_skip = _substeps(self.model, frame_skip, control_frequency)
        data = mujoco.MjData(self.model)
        if keyframe is not None:
            mujoco.mj_resetDataKeyframe(self.model, data, index_of(self.model, "keyframe", keyframe))
        self.init_qpos: NDArray[np.float64] = data.qpos.copy()
        self.init_qvel: NDArray[np.float64] = data.qvel.copy()
        self.init_ctrl: NDArray[np.float64] = data.ctrl.copy()
        self.follow = free_body(self.model)
        self._constants: dict[Any, Tensor] = {}

    @cached_property
    def dt(self) -> float:
        """Simulated seconds per env step, computed when it is first read."""
        return float(self.model.opt.timestep) * self.frame_skip

    def body(self, body: int | str) -> int:
        """Returns the index of a body in the body fields (xpos, cfrc_ext ...).

        Args:
            body: its name, or the index itself.

        Raises:
            ValueError: if the model has no such body; so do the other methods that take a name.
        """
        return index_of(self.model, "body", body)

    def geom(self, geom: int | str) -> int:
        """Returns the index of a geom in geom_xpos and in MjModel's geom fields."""
        return index_of(self.model, "geom", geom)

    def site(self, site: int | str) -> int:
        """Returns the index of a site in site_xpos."""
        return index_of(self.model, "site", site)

    def actuator(self, actuator: int | str) -> int:
        """Returns the index of an actuator in ctrl, actuator_force and MjModel's actuator fields."""
        return index_of(self.model, "actuator", actuator)

    def joint(self, joint: int | str) -> tuple[slice, slice]:
        """Returns where a joint is in qpos and in qvel: `fields["qpos"][:, joint_qpos]`."""
        return joint_slices(self.model, joint)

    def sensor(self, sensor: int | str) -> slice:
        """Returns where a sensor is in the field sensordata: `fields["sensordata"][:, gyro]`."""
        return sensor_slice(self.model, sensor)

    def touching(self, ones: str | Sequence[str], other: str) -> slice:
        """Returns where in sensordata the numbers of contacts of parts with another are, one each.

        It adds contact sensors to the model, so that every engine computes them. To be called in `__init__`,
        before anything in `self.model` is changed: the model is compiled anew.
        `fields["sensordata"][:, feet] > 0` then tells which feet touch.

        Args:
            ones: names of geoms, or of bodies, which stand for their own geoms.
            other: name of what they may touch.

        Raises:
            ValueError: if the model has no such part, or was given as an `MjModel`.
        """
        names = [ones] if isinstance(ones, str) else list(ones)
        start = int(self.model.nsensordata)
        self.model = self._source.with_contact_sensors([(one, other) for one in names])
        return slice(start, start + len(names))

    def constant(self, values: NDArray[np.float64], like: Tensor) -> Tensor:
        """Returns an array of the task as a tensor where another one is, and of its dtype.

        Hooks that also run on a GPU need this for arrays: it is copied once, while a CUDA graph cannot copy
        from the host.

        Args:
            values: an attribute of the task, or a part of one, which does not change.
            like: some field, for example.
        """
        # By what it holds: an expression such as self.init_qpos[7:] is another array in each call.
        key = values.tobytes(), values.shape, values.dtype, like.device, like.dtype
        if key not in self._constants:
            self._constants[key] = torch.from_numpy(values.copy()).to(like)
        return self._constants[key]

    def keyframe(self, keyframe: int | str) -> tuple[NDArray[np.float64], ...]:
        """Returns qpos [nq], qvel [nv] and ctrl [nu] of a keyframe."""
        i = index_of(self.model, "keyframe", keyframe)
        return tuple(
            each[i].copy() for each in (self.model.key_qpos, self.model.key_qvel, self.model.key_ctrl)
        )

    @abstractmethod
    def initial_state(self, rng: np.random.Generator) -> InitialState:
        """Draws qpos [nq] and qvel [nv] at the start of an episode, and its own state, if it has one.

        Gymnasium's tasks draw in Gymnasium's order, so that a seed means the same start there and here.

        Returns:
            qpos and qvel; or these and the entries of the state by name, numbers of any shape, which are
            the same in all episodes. `fields[NAME]`, [N, ...], holds an entry for all envs.
        """

    def randomize(self, rng: np.random.Generator) -> Mapping[str, ArrayLike]:
        """Draws what is different in an episode of a randomized environment, after `initial_state`.

        Fields of the model are whole arrays, named and shaped as in MjModel (body_mass, geom_friction,
        actuator_gainprm ...). What MuJoCo derives from them is computed. Entries of the state may be given,
        too: they replace those of `initial_state`.

        Returns:
            Arrays by name, the same names in all episodes; none if the task has no randomization.
        """
        return {}

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

    def control(self, fields: Fields, actions: Tensor) -> Tensor | Mapping[str, Tensor]:
        """Returns the controls of a step, [N, nu]; they are held for all of its substeps.

        Args:
            fields: before the step.
            actions: as given to `step`, [N, A].

        Returns:
            Controls; or a dict with them as "ctrl", and forces as "xfrc_applied", [N, nbody, 6], or
            "qfrc_applied", [N, nv], as MjData has them.
        """
        return actions

    def update_state(self, fields: Fields, actions: Tensor) -> Mapping[str, Tensor]:
        """Returns entries of the episode's state, [N, ...] each, as they are after a step.

        `reward` and `terminated` still see those from before the step, `observe` those from here.

        Args:
            fields: after the step, with the state from before.
            actions: as given to `step`, [N, A].
        """
        return {}

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


def _substeps(model: mujoco.MjModel, frame_skip: int | None, frequency: float | None) -> int:
    """Returns the number of substeps per env step."""
    if (frame_skip is None) == (frequency is None):
        raise ValueError(
            f"either frame_skip or control_frequency is needed, got {frame_skip!r} and {frequency!r}"
        )
    if frequency is None:
        if not isinstance(frame_skip, int | np.integer) or isinstance(frame_skip, bool) or frame_skip < 1:
            raise ValueError(f"frame_skip must be an integer >= 1, got {frame_skip!r}")
        return int(frame_skip)
    rate = 1 / float(model.opt.timestep)
    if not isinstance(frequency, int | float) or not 0 < frequency <= rate:
        raise ValueError(f"control_frequency must be in (0, {rate:g}] Hz, got {frequency!r}")
    substeps = round(rate / frequency)
    if abs(substeps * frequency - rate) > 1e-6 * rate:
        raise ValueError(
            f"control_frequency {frequency:g} Hz is no whole number of substeps of {model.opt.timestep:g} s; "
            f"{rate / substeps:g} and {rate / (substeps + 1):g} Hz are"
        )
    return substeps
