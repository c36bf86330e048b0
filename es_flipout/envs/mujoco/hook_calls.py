"""A task's hooks at work in torch, for all envs at once; if one raises, for each env alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from es_flipout.envs.engines.contract import Ids
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState
from es_flipout.envs.mujoco.task import Fields
from es_flipout.envs.mujoco.task_error import TaskError


class Outcome(NamedTuple):
    """What a task says of envs that have been stepped, [N, ...] each."""

    located: Tensor
    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    state: Mapping[str, Tensor]
    info: Mapping[str, Tensor]


class HookCalls:
    """Calls hooks with the fields of N envs.

    Attributes:
        located: `locate` of all envs, as it was last, [N, ...].
        observations: likewise, [N, O].
    """

    def __init__(self, task: CheckedTask, state: EnvState, dtype: torch.dtype, *, info: bool) -> None:
        """Observes and locates all envs.

        Args:
            task: the task.
            state: of the envs, with all fields.
            dtype: of observations.
            info: whether info entries are wanted.
        """
        self._task, self._state, self._dtype, self._with_info = task, state, dtype, info
        self.observations = task.observe(state.fields, dtype)
        self.located = task.locate(state.fields).clone()

    def look_at(self, ids: Ids) -> dict[int, str]:
        """Observes and locates envs that have been reset, [M]; returns what the task raised, by env."""
        try:
            self._look_at(ids)
        except TaskError:
            return _raised(ids.tolist(), lambda i: self._look_at(ids[ids == i]))
        return {}

    def _look_at(self, ids: Ids) -> None:
        index = torch.from_numpy(ids).long().to(self.located.device)
        fields = {name: value[index] for name, value in self._state.fields.items()}
        observations, located = self._task.observe(fields, self._dtype), self._task.locate(fields)
        if self._with_info:
            self._task.info(fields, {})
        self.observations[index], self.located[index] = observations, located

    def control(self, actions: Tensor, live: Sequence[int]) -> tuple[Mapping[str, Tensor], dict[int, str]]:
        """Returns what the physics gets for a step, and what the task raised, by env.

        Args:
            actions: of all envs, [N, A].
            live: the envs that are to be stepped.
        """
        fields, task = self._state.fields, self._task
        try:
            return task.control(fields, actions), {}
        except TaskError:
            inputs: dict[str, Tensor] = {"ctrl": fields["qpos"].new_zeros(len(actions), task.task.model.nu)}

        def ask(i: int) -> None:
            own = {name: value[i : i + 1] for name, value in fields.items()}
            for name, value in task.control(own, actions[i : i + 1]).items():
                if name not in inputs:
                    inputs[name] = fields["qpos"].new_zeros(len(actions), *value.shape[1:])
                inputs[name][i] = value[0]

        failures = _raised(live, ask)
        return inputs, failures

    def outcome(self, actions: Tensor, live: Sequence[int]) -> tuple[Outcome, dict[int, str]]:
        """Asks the task about all envs, which have been stepped; returns what it raised, too, by env.

        Args:
            actions: of the step, [N, A].
            live: the envs that have been stepped.
        """
        try:
            return self._outcome(slice(None), actions), {}
        except TaskError:
            pass
        located, observations = self.located.clone(), self.observations.clone()
        rewards = torch.zeros(len(actions), dtype=torch.float64, device=located.device)
        terminated = torch.zeros(len(actions), dtype=torch.bool, device=located.device)
        state = {name: value.clone() for name, value in self._state.entries.items()}
        outcome = Outcome(located, observations, rewards, terminated, state, {})

        def ask(i: int) -> None:
            own = self._outcome(slice(i, i + 1), actions)
            for values, value in zip(outcome[:4], own[:4], strict=True):
                values[i] = value[0]
            for name, value in own.state.items():
                state[name][i] = value[0]

        return outcome, _raised(live, ask)

    def _outcome(self, envs: slice, actions: Tensor) -> Outcome:
        task, before, fields = self._task, self.located, self._state.fields
        if envs != slice(None):
            fields = {name: value[envs] for name, value in fields.items()}
            before, actions = before[envs], actions[envs]
        located = task.locate(fields).clone()
        rewards, terms = task.reward(before, located, fields, actions)
        terminated, state = task.terminated(fields), task.update_state(fields, actions)
        after: Fields = {**fields, **state}
        observations = task.observe(after, self._dtype)
        info = task.info(after, terms) if self._with_info else {}
        return Outcome(located, observations, rewards, terminated, state, info)

    def info(self) -> Mapping[str, Tensor]:
        """Returns the info entries that follow from the state alone."""
        return self._task.info(self._state.fields, {})


def _raised(ids: Iterable[int], ask: Callable[[int], None]) -> dict[int, str]:
    """Returns what the task raised when asked about each env."""
    failures = {}
    for i in ids:
        try:
            ask(i)
        except TaskError as error:
            failures[i] = str(error)
    return failures
