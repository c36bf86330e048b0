"""The border to a user's `MujocoTask`: what it declares and what its hooks hand over is checked here.

Each call looks at types, shapes and dtypes alone, never at values, so that it costs next to nothing and may
be recorded as a CUDA graph. What only values show is found once, before the first episode, by `task_trial`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import mujoco
import numpy as np
import torch
from gymnasium.utils import seeding
from mujoco.batch import DATA_FIELDS
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.mujoco.task import Fields, MujocoTask
from es_flipout.error_text import FOREIGN, OneLineError, described, error_text

State = tuple[NDArray[np.float64], NDArray[np.float64]]

RESERVED = frozenset({"failed", "failures", "failure", "started"})
"""Info entries by which environments say what became of an episode."""

_SEQUENCES = (tuple, list)
_DICTS = (dict, Mapping)
_COMPLEX = {torch.complex32, torch.complex64, torch.complex128}


class TaskError(OneLineError, ValueError):
    """A task is not what a task must be; the message names the task, the hook, and what is wrong."""


def declared_fields(task: MujocoTask, attribute: str = "fields") -> tuple[str, ...]:
    """Returns the names of MjData fields in a task's `fields` or `info_fields`.

    Raises:
        TaskError: if it is not a sequence of such names.
    """
    if not isinstance(task, MujocoTask):
        raise TaskError(f"a task must be a MujocoTask, got {task!r}")
    name = f"{type(task).__name__}.{attribute}"
    given = getattr(task, attribute, None)
    if isinstance(given, str):
        raise TaskError(f"{name} is the string {given!r}: names of fields are in a tuple, ({given!r},)")
    if not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise TaskError(
            f'{name} must name the MjData fields that the task reads, as in ("qpos",), got {given!r}'
        )
    for each in given:
        if each not in DATA_FIELDS:
            close = difflib.get_close_matches(each, DATA_FIELDS)
            hint = (
                f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else "as qpos, xpos or sensordata are"
            )
            raise TaskError(f"{name}: {each!r} is not a field of MjData of fixed size ({hint})")
    return tuple(given)


class CheckedTask:
    """A task whose hooks are called through this class, which checks their results.

    All tensors are [N, ...] for the N envs of the fields handed in, whatever N is.

    Attributes:
        task: the task itself.
        name: of its class, for messages.
        fields: names of the fields that all hooks but `state_info` may read; qpos is always among them.
        info_fields: names of further fields for `state_info`.
    """

    def __init__(self, task: MujocoTask) -> None:
        """Takes a task, and checks what it declares.

        Raises:
            TaskError: if its fields, its model or its frame_skip are not usable.
        """
        declared = declared_fields(task)
        self.task = task
        self.name = type(task).__name__
        self.fields = tuple(dict.fromkeys(["qpos", *declared]))
        self.info_fields = declared_fields(task, "info_fields")
        self._num_features: int | None = None  # of an observation, as in the first
        self._located: tuple[int, ...] | None = None  # shape of an env's place, as in the first
        if not isinstance(getattr(task, "model", None), mujoco.MjModel):
            raise TaskError(f"{self.name}.__init__ must call super().__init__(xml_file, frame_skip)")
        if task.model.nu == 0:
            raise TaskError(
                f"{self.name}: the model has no actuators, so no policy can act: add an <actuator>"
            )

    def action_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the lowest and highest action, float32 [A]: infinite for actuators without ctrlrange."""
        model = self.task.model
        limited = model.actuator_ctrllimited.astype(np.bool_)
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        return np.where(limited, low, -np.float32(np.inf)), np.where(limited, high, np.float32(np.inf))

    def initial_state(self, rng: np.random.Generator) -> State:
        """Returns qpos, float64 [nq], and qvel, float64 [nv], at the start of an episode."""
        given, model = self._call("initial_state", rng), self.task.model
        if not isinstance(given, _SEQUENCES) or len(given) != 2:
            self._refuse(
                "initial_state",
                f"must return qpos [{model.nq}] and qvel [{model.nv}], got {described(given)}",
            )
        return self._coordinates("qpos", given[0], model.nq), self._coordinates("qvel", given[1], model.nv)

    def seeded_state(self, seed: int) -> State:
        """Returns what `initial_state` draws for a reset seed."""
        return self.initial_state(seeding.np_random(seed)[0])

    def observe(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        """Returns the observation, [N, O], in a floating dtype."""
        given = self._call("observe", fields)
        parts = (given,) if isinstance(given, Tensor) else given
        if not isinstance(parts, _SEQUENCES) or not parts:
            self._refuse("observe", f"must return tensors [N, ...], the parts of it, got {described(given)}")
        columns = []
        for part in parts:
            self._check("observe", part, fields)
            part = part.to(dtype)
            columns.append(part if part.ndim == 2 else part.reshape(len(part), -1))
        observation = torch.cat(columns, dim=1)
        if observation.shape[1] != self._num_features:
            if observation.shape[1] == 0:
                self._refuse("observe", "returned no features: a policy would have nothing to act on")
            if self._num_features is not None:
                self._refuse(
                    "observe", f"returned {observation.shape[1]} features, {self._num_features} before that"
                )
            self._num_features = observation.shape[1]
        return _without_graph(observation)

    def locate(self, fields: Fields) -> Tensor:
        """Returns where each env is, [N, ...]; it may be a view of the fields."""
        located: Tensor = self._call("locate", fields)
        shape = self._check("locate", located, fields)[1:]
        if shape != self._located:
            if self._located is not None:
                before = f"[N, *{list(self._located)}]"
                self._refuse("locate", f"returned {before} before, now {described(located)}")
            self._located = shape
        return _without_graph(located)

    def reward(
        self, before: Tensor, after: Tensor, fields: Fields, actions: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the reward, floating [N], and its terms, which `info` checks if they are wanted."""
        given, needed = self._call("reward", before, after, fields, actions), "a tensor [N] and a dict"
        if not isinstance(given, _SEQUENCES) or len(given) != 2 or not isinstance(given[1], _DICTS):
            self._refuse("reward", f"must return {needed}, got {described(given)}")
        reward, terms = given
        if len(self._check("reward", reward, fields, needed)) != 1:
            self._refuse("reward", f"must return {needed}, got {described(reward)}{_shape_hint(reward)}")
        reward = _without_graph(reward)
        return reward if reward.is_floating_point() else reward.to(fields["qpos"].dtype), terms

    def terminated(self, fields: Fields) -> Tensor:
        """Returns which envs have terminated, bool [N]."""
        given: Tensor = self._call("terminated", fields)
        shape = self._check("terminated", given, fields, "a bool tensor [N]")
        if len(shape) != 1 or given.dtype is not torch.bool:
            hint = _shape_hint(given) or "; a comparison gives one, such as height < 0.2"
            self._refuse("terminated", f"must return a bool tensor [N], got {described(given)}{hint}")
        return given

    def info(self, fields: Fields, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the info entries, [N, ...] each: those of `state_info`, and the terms of the reward."""
        entries: dict[str, Tensor] = {}
        for hook, given in (("state_info", self._call("state_info", fields)), ("reward", terms)):
            if not isinstance(given, Mapping):
                self._refuse(hook, f"must return a dict of tensors [N, ...], got {described(given)}")
            for name, value in given.items():
                if not isinstance(name, str):
                    self._refuse(hook, f"must name its info entries by text, got {described(name)}")
                if name in RESERVED:
                    self._refuse(hook, f"may not name an info entry {name!r}, which has a meaning of its own")
                self._check(hook, value, fields, verb=f"give {name!r} as")
                entries[name] = _without_graph(value)
        return entries

    def _call(self, hook: str, *args: Any) -> Any:
        try:
            return getattr(self.task, hook)(*args)
        except FOREIGN as error:
            undeclared = error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else None
            if isinstance(undeclared, str) and undeclared in DATA_FIELDS:
                declared, names = (
                    ("info_fields", self.info_fields) if hook == "state_info" else ("fields", self.fields)
                )
                reads = (
                    f"{self.name}.{hook} reads the field {undeclared!r}, which {declared} does not declare"
                )
                raise TaskError(f"{reads}: {declared} = {(*names, undeclared)!r}") from error
            raise TaskError(f"{self.name}.{hook}: {error_text(error)}") from error

    def _check(
        self,
        hook: str,
        value: Any,
        fields: Fields,
        needed: str = "a tensor [N, ...] of real numbers",
        verb: str = "return",
    ) -> torch.Size:
        """Checks that a value is a real tensor [N, ...] where the fields are; returns its shape."""
        qpos = fields["qpos"]
        shape = value.shape if isinstance(value, Tensor) else None
        if not shape or shape[0] != qpos.shape[0] or value.dtype in _COMPLEX:
            self._refuse(hook, f"must {verb} {needed}, got {described(value)}{_shape_hint(value)}")
        if value.get_device() != qpos.get_device():
            where = f"{qpos.device}, as the fields are, not on {value.device}"
            self._refuse(hook, f"must {verb} a tensor on {where}")
        return shape

    def _coordinates(self, name: str, given: Any, size: int) -> NDArray[np.float64]:
        try:
            values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        except (ValueError, TypeError):
            values = np.empty(0, dtype=object)  # of ragged lists
        if values.dtype.kind not in "fiu" or values.shape != (size,):
            count = "nq" if name == "qpos" else "nv"
            self._refuse(
                "initial_state", f"must return {name} as {count} = {size} numbers, got {described(given)}"
            )
        return values.astype(np.float64)

    def _refuse(self, hook: str, what: str) -> NoReturn:
        raise TaskError(f"{self.name}.{hook} {what}")


def _without_graph(value: Tensor) -> Tensor:
    """Returns a tensor that keeps no graph, as one that a network computed does."""
    return value.detach() if value.requires_grad else value


def _shape_hint(value: Any) -> str:
    """Returns the remedy for what beginners return instead of a tensor [N]; nothing if there is none."""
    if isinstance(value, np.ndarray | np.generic):
        return ": a task is written in torch"
    if isinstance(value, Tensor) and value.ndim == 0:
        return ": one number for all envs; sum, norm and the like need dim=1"
    if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == 1:
        return ": use squeeze(1), or keepdim=False"
    return ""
