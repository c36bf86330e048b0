"""The step loop of the device: act, count, hand over, all in tensors.

What `HostLoop` does for any environment, this does for `WarpEngine` without looking at a single value, so
that it can be recorded as a CUDA graph: whatever depends on who has ended is a mask over all N envs. Between
two steps of the physics there is one call of `between_steps`, always the same operations on the same memory.

With K bases the envs are K equal groups, and so are the episodes, in this order: each group of envs plays
those of the members that share its base, so that every base meets the same rows in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.masks import where_rows
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState
from es_flipout.envs.mujoco.start import Start, StartBatch
from es_flipout.envs.mujoco.task_error import TaskError
from es_flipout.normalization import RunningStatistics
from es_flipout.population import Population
from es_flipout.rollout.policy_actions import PolicyActions
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent

if TYPE_CHECKING:
    from es_flipout.rollout.action_noise import DeviceActionNoise

NOT_FINITE_BIT = 1 << 20
"""Fault of an episode whose return or observations are not finite, beside those of `WarpEngine.faults`."""


@dataclass(frozen=True)
class SeededStates:
    """How a generation's episodes begin, drawn by the host once for each of U different seeds.

    Attributes:
        seeds: reset seed of each episode, int64 [P x E].
        of_episode: which of the U each episode starts from, int64 [P x E].
        starts: the U starts.
        failures: what the task raised instead of drawing some of the U, whose positions are NaN.
    """

    seeds: NDArray[np.int64]
    of_episode: NDArray[np.intp]
    starts: StartBatch
    failures: Mapping[int, str]

    @classmethod
    def draw(cls, task: CheckedTask, seeds: NDArray[np.int64]) -> SeededStates:
        """Draws them as a reset of the environment does."""
        unique, of_episode = np.unique(seeds, return_inverse=True)
        drawn: list[Start | None] = []
        failures: dict[int, str] = {}
        for i, seed in enumerate(unique.tolist()):
            try:
                drawn.append(task.seeded_start(seed))
            except TaskError as error:
                drawn.append(None)
                failures[i] = str(error)
        broken = task.broken_start()
        starts = StartBatch.of([broken if each is None else each for each in drawn])
        return cls(seeds, of_episode, starts, failures)

    def fault(self, episode: int) -> str | None:
        """Returns why an episode cannot start; None if it can."""
        return self.failures.get(int(self.of_episode[episode]))


@dataclass(frozen=True)
class Starts:
    """What the episodes of a generation begin with, on the device.

    Attributes:
        of_episode: which of the U each episode starts from, int64 [episodes].
        qpos: positions, float32 [U, nq].
        qvel: velocities, float32 [U, nv].
        state: entries of the episodes' own state, float32 [U, ...] each.
        model: MjModel fields that vary, likewise.
        noise_keys: int64 [U].
        fields: what `CheckedTask.control` reads besides, [U, ...] each.
        observations: [U, O].
        located: `CheckedTask.locate`, [U, ...].
    """

    of_episode: Tensor
    qpos: Tensor
    qvel: Tensor
    state: Mapping[str, Tensor]
    model: Mapping[str, Tensor]
    noise_keys: Tensor
    fields: Mapping[str, Tensor]
    observations: Tensor
    located: Tensor

    @classmethod
    def compute(
        cls, engine: WarpEngine, task: CheckedTask, states: SeededStates, dtype: torch.dtype
    ) -> Starts:
        """Computes what follows from the states; uses all envs of the engine."""
        observations, located, starts = [], [], states.starts
        others = set(task.fields) - {"qpos", "qvel"} if task.has_controls else set()
        seen: dict[str, list[Tensor]] = {name: [] for name in sorted(others)}
        env_state = EnvState(task, engine.fields, engine.num_envs)
        for first in range(0, len(starts.qpos), engine.num_envs):
            some = starts.part(slice(first, first + engine.num_envs))
            size = len(some.qpos)
            ids = np.arange(size, dtype=np.int32)
            engine.reset(ids, some.qpos, some.qvel, some.model)
            env_state.begin(ids, some)
            observations.append(task.observe(env_state.fields, dtype)[:size].clone())
            located.append(task.locate(env_state.fields)[:size].clone())
            for name, parts in seen.items():
                parts.append(engine.fields[name][:size].clone())

        def on_device(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(engine.device)

        return cls(
            on_device(states.of_episode),
            on_device(starts.qpos).float(),
            on_device(starts.qvel).float(),
            {name: on_device(values).float() for name, values in starts.state.items()},
            {name: on_device(starts.model[name]).float() for name in engine.varied},
            on_device(starts.noise_keys),
            {name: torch.cat(parts) for name, parts in seen.items()},
            torch.cat(observations),
            torch.cat(located),
        )


class DeviceLoop:
    """N envs at work on the episodes of a generation.

    Attributes:
        live: which envs hold an episode, bool [N].
        returns: sum of rewards of each episode, float64 [episodes + 1]; the last is of none.
        lengths: their env steps, int64 [episodes + 1].
        faults: what went wrong in them, int32 [episodes + 1].
    """

    @torch.no_grad()
    def __init__(
        self,
        engine: WarpEngine,
        task: CheckedTask,
        population: Population,
        starts: Starts,
        members: NDArray[np.int64],
        limit: int | None,
        noise: DeviceActionNoise | None = None,
    ) -> None:
        """Has every env take its first episode, and its member act.

        Args:
            engine: the physics of the N envs.
            task: what it simulates.
            population: the members.
            starts: of their episodes.
            members: who plays each episode, int64 [episodes]: as many for each base, in order of the bases.
            limit: env steps after which an episode ends; None for never.
            noise: on the actions; None for none.
        """
        self._engine, self._task, self._starts = engine, task, starts
        self._limit, self._noise = limit, noise
        num_envs, device = engine.num_envs, engine.device
        num_episodes = len(starts.of_episode)
        self._none, self._groups = num_episodes, population.noise.num_bases
        self._episodes_a_group = num_episodes // self._groups
        self._member_of_episode = torch.from_numpy(members).to(device)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        size = starts.observations.shape[1]
        self.live = zeros(num_envs, dtype=torch.bool)
        self.returns = zeros(num_episodes + 1)
        self.lengths = zeros(num_episodes + 1, dtype=torch.int64)
        self.faults = zeros(num_episodes + 1, dtype=torch.int32)
        self._queues = zeros(self._groups, dtype=torch.int64)  # episodes that each group has begun
        self._episode = torch.full_like(self.live, self._none, dtype=torch.int64)
        group = torch.arange(self._groups, device=device).repeat_interleave(num_envs // self._groups)
        self._first_of_group = group * self._episodes_a_group
        self._members = self._member_of_episode[self._first_of_group]
        self._return, self._length = zeros(num_envs), zeros(num_envs, dtype=torch.int64)
        self._observations = starts.observations.new_zeros(num_envs, size)
        self._located = starts.located.new_zeros(num_envs, *starts.located.shape[1:])
        # Sums of the deviations from this point, and of their squares: of the running episodes, and of all
        # that have ended. It is near the observations, so that a large constant costs no precision; a start
        # that is not sound does not move it.
        self._point = starts.observations.double().nanmedian(dim=0).values.nan_to_num(0.0, 0.0, 0.0)
        self._sums, self._total = zeros(2, num_envs, size), zeros(2, size)
        self._count = zeros(dtype=torch.int64)

        policy = population.policy
        self._actions = PolicyActions(policy, spaces.Box(*task.action_range), device)
        self._action = zeros(num_envs, len(task.action_range[0]), dtype=torch.float32)
        self._state = EnvState(task, engine.fields, num_envs)
        self._inputs: dict[str, Tensor] = {}
        self._like = policy.get_parameter(population.trained[0])
        self._rows = population.select(torch.zeros(0, dtype=torch.int64))
        self._recurrent = RecurrentState(policy, num_envs, in_place=True) if is_recurrent(policy) else None
        self._refill(torch.ones_like(self.live))
        self._act()

    @torch.no_grad()
    def between_steps(self) -> None:
        """Takes in what a step of the physics came to, and prepares the next."""
        ended, faults = self._take_in()
        self._conclude(ended, faults)
        self._refill(ended)
        self._act()

    def _take_in(self) -> tuple[Tensor, Tensor]:
        """Counts the step; returns which episodes it ended, bool [N], and what went wrong, int32 [N]."""
        fields, task = self._state.fields, self._task
        self._length += 1
        if self._state.draws:
            self._state.draw(self.live, self._length)
        before, after = self._located, task.locate(fields)
        rewards, _ = task.reward(before, after, fields, self._action)
        self._return += rewards
        faults = self._engine.faults()
        ended = task.terminated(fields) | (faults != 0)
        if self._limit is not None:
            ended = ended | (self._length >= self._limit)
        self._located.copy_(after)
        self._state.keep(task.update_state(fields, self._action))
        self._observations.copy_(task.observe(fields, self._observations.dtype))
        return ended & self.live, faults

    def _conclude(self, ended: Tensor, faults: Tensor) -> None:
        """Writes down what came of the episodes in some envs, bool [N]."""
        # A sum of squares is finite only if all of the deviations are.
        finite = self._return.isfinite() & self._sums[1].sum(dim=1).isfinite()
        faults = faults | (~finite).int() * NOT_FINITE_BIT
        episode = torch.where(ended, self._episode, self._none)
        self.returns.scatter_(0, episode, self._return)
        self.lengths.scatter_(0, episode, self._length)
        self.faults.scatter_(0, episode, faults)
        # An episode that broke must not poison the moments of the others.
        good = ended & (faults == 0)
        self._count += torch.where(good, self._length, 0).sum()
        self._total += torch.where(good.unsqueeze(1), self._sums, 0.0).sum(dim=1)

    def _refill(self, free: Tensor) -> None:
        """Gives free envs, bool [N], the episodes that wait.

        Envs that get none are put back to a start at every step: bodies that go on falling have contacts,
        and the solver takes as long for all envs as for the slowest.
        """
        starts = self._starts
        by_group = free.view(self._groups, -1)
        nth = self._queues.unsqueeze(1) + by_group.cumsum(dim=1) - 1
        takes = by_group & (nth < self._episodes_a_group)
        self._queues += takes.sum(dim=1)
        taking = takes.flatten()
        self.live.copy_((self.live & ~free) | taking)
        episode = torch.where(taking, self._first_of_group + nth.flatten(), self._episode)
        self._episode.copy_(episode)
        some_episode = episode.clamp(max=self._none - 1)
        start = starts.of_episode[some_episode]
        self._members.copy_(torch.where(taking, self._member_of_episode[some_episode], self._members))
        model, fields = (
            {name: values[start] for name, values in each.items()} for each in (starts.model, starts.fields)
        )
        self._engine.restart(taking | ~self.live, starts.qpos[start], starts.qvel[start], model, fields)
        entries = {name: values[start] for name, values in starts.state.items()}
        self._state.begin_where(taking, entries, starts.noise_keys[start])

        def begin(values: Tensor, beginning: Tensor) -> None:
            values.copy_(where_rows(taking, beginning, values))

        begin(self._observations, starts.observations[start])
        begin(self._located, starts.located[start])
        self._return.masked_fill_(taking, 0.0)
        self._length.masked_fill_(taking, 0)
        self._sums.masked_fill_(taking.unsqueeze(1), 0.0)
        if self._state.draws:
            self._state.draw(taking, self._length)
        if self._recurrent is not None:
            self._recurrent.reset_where(taking)

    def _act(self) -> None:
        """Has all members act on what they observe."""
        deviations = self._observations - self._point
        self._sums[0] += deviations
        self._sums[1].addcmul_(deviations, deviations)
        self._rows.select(self._members, grouped=True)
        observations = self._observations.to(self._like)
        if self._recurrent is None:
            act = partial(self._rows, observations)
        else:
            act = partial(self._recurrent.act, self._rows, observations, slice(None))
        actions = self._actions.run(act, len(observations))
        if self._noise is not None:
            actions = self._noise.added(actions, self._episode.clamp(max=self._none - 1), self._length)
        self._action.copy_(where_rows(self.live, actions, torch.zeros_like(actions[:1])))
        for name, values in self._task.control(self._state.fields, self._action).items():
            if name not in self._inputs:
                self._inputs[name] = self._engine.input(name)
            target = self._inputs[name]
            target.copy_(where_rows(self.live, values, torch.zeros_like(target[:1])))

    def statistics(self) -> RunningStatistics:
        """Returns the moments of the observations of all episodes that ended well, on the host."""
        count = self._count.to(torch.float64).cpu()
        sums, squares = self._total.cpu()
        offset = sums / count.clamp(min=1.0)
        statistics = RunningStatistics(len(sums))
        statistics.count = count
        statistics.mean = torch.where(count > 0, self._point.cpu() + offset, 0.0)
        statistics.m2 = (squares - sums * offset).clamp(min=0.0)
        return statistics
