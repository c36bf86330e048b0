"""The border to a user's `MujocoTask`: what it declares and what its hooks hand over is checked here.

Each call looks at types, shapes and dtypes alone, never at values, so that it costs next to nothing and may
be recorded as a CUDA graph. What only values show is found once, before the first episode, by `task_trial`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import mujoco
import numpy as np
import torch
from gymnasium.utils import seeding
from mujoco.batch import DATA_FIELDS
from torch import Tensor

from es_flipout.described import described
from es_flipout.envs.contract import OWN_INFO
from es_flipout.envs.mujoco.checked_starts import CheckedStarts, is_randomizable
from es_flipout.envs.mujoco.declarations import declared_action_range, declared_fields
from es_flipout.envs.mujoco.start import Start
from es_flipout.envs.mujoco.task import Fields, MujocoTask
from es_flipout.envs.mujoco.task_error import TaskError, call_hook

INPUTS = ("ctrl", "qfrc_applied", "xfrc_applied")
"""Fields of MjData that `control` may give, which are 0 at the start of an episode."""
NOISE = "noise"
"""The field of noise numbers."""
RESERVED = frozenset({*OWN_INFO, "failure"})
"""Info entries by which environments say what became of an episode."""

_SEQUENCES = (tuple, list)
_DICTS = (dict, Mapping)
_COMPLEX = {torch.complex32, torch.complex64, torch.complex128}


class CheckedTask:
    """A task whose hooks are called through this class, which checks their results.

    All tensors are [N, ...] for the N envs of the fields handed in, whatever N is.

    Attributes:
        task: the task itself.
        name: of its class, for messages.
        fields: names of the MjData fields that all hooks but `state_info` may read; qpos is always among
            them.
        info_fields: names of further fields for `state_info`.
        state: shapes of the entries of an episode's own state, by name.
        varied: names of the MjModel fields that differ from episode to episode.
        is_randomized: whether episodes are randomized: as asked for, if the task can.
        action_range: lowest and highest action, float32 [A] each: infinite for actuators without ctrlrange.
        has_controls: whether it makes controls of actions itself.
    """

    def __init__(self, task: MujocoTask, *, randomize: bool = False) -> None:
        """Takes a task, and checks what it declares.

        Args:
            task: the task.
            randomize: whether `randomize` and noise are used.

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
            raise TaskError(f"{self.name}.__init__ must call super().__init__(model, frame_skip)")
        self.has_controls = type(task).control is not MujocoTask.control
        if task.model.nu == 0:
            raise TaskError(
                f"{self.name}: the model has no actuators, so no policy can act: add an <actuator>"
            )
        self.action_range = declared_action_range(task, has_controls=self.has_controls)
        self.is_randomized = randomize and is_randomizable(task)
        self._keeps_state = type(task).update_state is not MujocoTask.update_state
        self._starts = CheckedStarts(task, randomize=self.is_randomized)
        self.state = self._starts.state
        self.varied = self._starts.varied

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of all that hooks but `state_info` may read: MjData's fields, the state, and noise."""
        return (*self.fields, *self.state, *((NOISE,) if self.task.noise else ()))

    def start(self, rng: np.random.Generator) -> Start:
        """Returns how an episode begins, as drawn from a generator."""
        return self._starts.draw(rng)

    def seeded_start(self, seed: int) -> Start:
        """Returns how the episode of a reset seed begins."""
        return self.start(seeding.np_random(seed)[0])

    def broken_start(self) -> Start:
        """Returns a start that stands for one that could not be drawn: its positions are NaN."""
        return self._starts.broken()

    def control(self, fields: Fields, actions: Tensor) -> Mapping[str, Tensor]:
        """Returns what the physics gets for a step, by the names of `INPUTS`: always "ctrl", [N, nu]."""
        if not self.has_controls:
            return {"ctrl": actions}
        given = self._call("control", fields, actions)
        inputs = {"ctrl": given} if isinstance(given, Tensor) else given
        if not isinstance(inputs, Mapping) or "ctrl" not in inputs:
            self._refuse(
                "control",
                f'must return controls, or a dict with "ctrl" among its names, got {described(given)}',
            )
        model = self.task.model
        shapes = {"ctrl": (model.nu,), "qfrc_applied": (model.nv,), "xfrc_applied": (model.nbody, 6)}
        for name, value in inputs.items():
            if name not in INPUTS:
                self._refuse("control", f"may give {', '.join(INPUTS)}, got {name!r}")
            what = f"a tensor [N, {', '.join(map(str, shapes[name]))}]"
            if self._check("control", value, fields, what, f"give {name!r} as")[1:] != shapes[name]:
                self._refuse("control", f"must give {name!r} as {what}, got {described(value)}")
        return {name: _without_graph(value) for name, value in inputs.items()}

    def update_state(self, fields: Fields, actions: Tensor) -> dict[str, Tensor]:
        """Returns the entries of the state that a step changes, [N, ...] each, in the dtype of the fields.

        They are copies: a hook may return an entry as the new value of another.
        """
        if not self._keeps_state:
            return {}
        given = self._call("update_state", fields, actions)
        if not isinstance(given, _DICTS):
            self._refuse("update_state", f"must return a dict of tensors [N, ...], got {described(given)}")
        entries = {}
        for name, value in given.items():
            if name not in self.state:
                known = ", ".join(map(repr, self.state)) or "none: initial_state begins it"
                self._refuse("update_state", f"gives {name!r}, the entries of the state are {known}")
            what = f"a tensor {['N', *self.state[name]]}".replace("'", "")
            shape = self._check("update_state", value, fields, what, f"give {name!r} as")
            if shape[1:] != self.state[name]:
                self._refuse("update_state", f"must give {name!r} as {what}, got {described(value)}")
            entries[name] = _without_graph(value).to(fields["qpos"].dtype, copy=True)
        return entries

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
            return call_hook(self.task, hook, *args)
        except TaskError as error:
            cause = error.__cause__
            undeclared = cause.args[0] if isinstance(cause, KeyError) and len(cause.args) == 1 else None
            if isinstance(undeclared, str) and undeclared in DATA_FIELDS:
                declared, names = (
                    ("info_fields", self.info_fields) if hook == "state_info" else ("fields", self.fields)
                )
                reads = (
                    f"{self.name}.{hook} reads the field {undeclared!r}, which {declared} does not declare"
                )
                raise TaskError(f"{reads}: {declared} = {(*names, undeclared)!r}") from cause
            raise

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
