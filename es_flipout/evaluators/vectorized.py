"""Evaluates a population in a vector environment: one forward a step, every slot with its own member.

A slot holds one member's episode. When the episode ends the slot takes the next member that waits, so
population size and number of slots are independent; a slot with nothing left to do is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.normalization import RunningStatistics
from es_flipout.population import Population


class EvaluationStoppedError(Exception):
    """The evaluation was asked to stop before every member had its episode."""


@dataclass(frozen=True)
class Evaluation:
    """What a generation of rollouts gave.

    Attributes:
        fitness: return (sum of rewards) of each member's episode, float64 [P].
        lengths: env steps of each member's episode, int64 [P].
        slot_steps: slots x steps spent, live or not.
        observations: moments of the finite observations that members acted on, live steps only.
    """

    fitness: Tensor
    lengths: Tensor
    slot_steps: int
    observations: RunningStatistics

    @property
    def env_steps(self) -> int:
        """Live env steps: every one advanced the episode of a member."""
        return int(self.lengths.sum())

    @property
    def live_share(self) -> float:
        """Share of the slot-steps that were live."""
        return self.env_steps / self.slot_steps


class VectorizedEvaluator:
    """Runs one episode of every member of a population in `env`."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Takes the environment.

        Args:
            env: a vector environment of torch tensors whose autoreset is disabled and which honours
                `options={"reset_mask": mask}`, as all native ones do.

        Raises:
            ValueError: if the environment resets by itself.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(f"the environment's autoreset mode must be DISABLED, got {mode}")
        self.env = env
        space = env.single_observation_space
        if space.shape is None or len(space.shape) != 1:
            raise ValueError(f"observations must be vectors, got {space}")
        self._observation_size = space.shape[0]

    @torch.no_grad()
    def evaluate(
        self,
        population: Population,
        reset_seeds: Sequence[int],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Rolls every member out for one episode.

        Args:
            population: the members.
            reset_seeds: seed of each member's episode, [P].
            should_stop: asked before every step.

        Raises:
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if there is not one seed a member.
        """
        if len(reset_seeds) != population.size:
            raise ValueError(f"{len(reset_seeds)} reset seeds for {population.size} members")
        fitness = torch.zeros(population.size, dtype=torch.float64)
        lengths = torch.zeros(population.size, dtype=torch.int64)
        slots = _Slots(self.env.num_envs, population.size)
        ended = np.ones(self.env.num_envs, dtype=np.bool_)
        statistics: RunningStatistics | None = None
        num_steps = 0

        while True:
            if ended.any():
                started = slots.refill(ended)
                if not slots.any_live:
                    break
                if started.any():
                    observations = self._reset(started, slots.member, reset_seeds)
                device = observations.device
                live, members = slots.live(device), slots.live_members()
                rows = population.select(members.to(device))
                actions = torch.zeros(self.env.action_space.shape or (), device=device)
            if should_stop():
                raise EvaluationStoppedError
            live_observations = observations[live]
            if statistics is None:
                statistics = RunningStatistics(self._observation_size, device)
            # A simulation that blew up must not poison the moments of all the others.
            statistics.update(live_observations, live_observations.isfinite().all(dim=1))
            actions[live] = rows(live_observations).to(actions.dtype)
            observations, rewards, terminated, truncated, _ = self.env.step(actions)
            fitness[members] += rewards[live].to("cpu", torch.float64)
            lengths[members] += 1
            num_steps += 1
            ended = (terminated | truncated).cpu().numpy() & slots.occupied

        assert statistics is not None
        return Evaluation(fitness, lengths, num_steps * self.env.num_envs, statistics)

    def _reset(
        self, started: NDArray[np.bool_], member: NDArray[np.int64], reset_seeds: Sequence[int]
    ) -> Tensor:
        """Starts an episode in each slot that got a member; returns all observations [N, O]."""
        seeds = [
            reset_seeds[m] if is_started else None
            for m, is_started in zip(member.tolist(), started.tolist(), strict=True)
        ]
        # Every Gymnasium vector environment takes a seed a row; the base class does not declare it.
        observations: Tensor
        observations, _ = self.env.reset(seed=seeds, options={"reset_mask": started})  # type: ignore[arg-type]
        return observations


class _Slots:
    """Which member each slot holds, and which members still wait.

    Attributes:
        member: the member of each slot, -1 for none, [N].
    """

    def __init__(self, num_slots: int, num_members: int) -> None:
        self.member = np.full(num_slots, -1, dtype=np.int64)
        self._waiting = iter(range(num_members))

    @property
    def occupied(self) -> NDArray[np.bool_]:
        """Which slots hold a member, [N]."""
        return self.member >= 0

    @property
    def any_live(self) -> bool:
        """Whether any slot holds a member."""
        return bool(self.occupied.any())

    def refill(self, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Gives every ended slot the next waiting member, or none; returns which slots got one, [N]."""
        for slot in np.flatnonzero(ended).tolist():
            self.member[slot] = next(self._waiting, -1)
        return ended & self.occupied

    def live(self, device: torch.device) -> Tensor | slice:
        """Returns an index of the occupied slots: a slice, which copies nothing, if all are."""
        if self.occupied.all():
            return slice(None)
        return torch.from_numpy(np.flatnonzero(self.member >= 0)).to(device)

    def live_members(self) -> Tensor:
        """Returns the members of the occupied slots, int64."""
        return torch.from_numpy(self.member[self.member >= 0])
