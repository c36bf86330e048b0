"""The slots of one environment at work: who runs in which, what comes of the episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.policies import box
from es_flipout.population import Population
from es_flipout.rollout.episodes import EpisodeResults, EvaluationStoppedError
from es_flipout.rollout.mlp_rows import member_rows
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent


def observation_size(env: TorchVectorEnv) -> int | None:
    """Returns how many features an environment's observations have; None if they are not vectors.

    Raises:
        ValueError: if observations are no Box.
    """
    shape = box(env.single_observation_space).shape
    return shape[0] if len(shape) == 1 else None


class Tile:
    """The slots of one environment, each with the episode that it holds, and the episodes that wait.

    Attributes:
        slot_steps: slots x steps so far.
    """

    def __init__(
        self,
        env: TorchVectorEnv,
        population: Population,
        results: EpisodeResults,
        waiting: NDArray[np.int64],
        limit: int | None,
    ) -> None:
        self.env = env
        self.results = results
        self.slot_steps = 0
        self._limit = limit
        self._waiting = deque(waiting.tolist())
        num_envs, size = env.num_envs, results.observation_size
        self._episode = np.full(num_envs, -1, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._returns = torch.zeros(num_envs, dtype=torch.float64, device=env.device)
        self._moments = (
            None if size is None else torch.zeros(3, num_envs, size, dtype=torch.float64, device=env.device)
        )
        self._observations = torch.zeros(0)
        self._acting = np.empty(0, dtype=np.int64)  # the slots that the policy runs for, sorted
        self._slots: Tensor | slice = torch.from_numpy(self._acting)
        self._idle = True  # whether any slot is free
        self._rows = member_rows(population)
        self._action_dtype = torch.from_numpy(np.empty(0, env.single_action_space.dtype)).dtype
        self._like = population.policy.get_parameter(population.trained[0])
        self._recurrent = (
            RecurrentState(population.policy, num_envs) if is_recurrent(population.policy) else None
        )

    @torch.no_grad()
    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Plays all the episodes that wait.

        Raises:
            EvaluationStoppedError: if `should_stop`, asked before every step, said so.
        """
        # What an evaluation that was stopped has left must not be stepped on.
        self.env.retire(np.ones(self.env.num_envs, dtype=np.bool_))
        self._refill()
        while self._waiting or (self._episode >= 0).any():
            if should_stop():
                raise EvaluationStoppedError
            self._step()

    def _step(self) -> None:
        """Lets the members act, and hands the slots whose episode ends on."""
        observations = self._observations
        if isinstance(self._slots, slice):
            actions = self._act(observations)
        else:
            some = self._act(observations[self._slots])
            actions = some.new_zeros(self.env.num_envs, *some.shape[1:])
            actions[self._slots] = some
        if self._moments is not None:
            first, sums, squares = self._moments
            deviations = observations - first
            sums += deviations
            squares.addcmul_(deviations, deviations)
        self._observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._returns += rewards
        self._lengths += 1
        self.slot_steps += self.env.num_envs
        ended = (terminated | truncated).cpu().numpy()
        if self._limit is not None:
            reached = ~ended & (self._lengths >= self._limit)
            if reached.any():
                self.env.retire(reached)
                ended |= reached
        ended &= self._episode >= 0
        if ended.any():
            self._conclude(np.flatnonzero(ended), info)
            self._refill()
        elif self._waiting and self._idle:
            self._refill()

    def _act(self, observations: Tensor) -> Tensor:
        """Returns the actions of the members in the slots that act, of the action space's dtype."""
        observations = observations.to(self._like)
        actions: Tensor
        if self._recurrent is not None:
            actions = self._recurrent.act(self._rows, observations, self._slots)
        else:
            actions = self._rows(observations)
        return actions.to(self.env.device, self._action_dtype)

    def _conclude(self, slots: NDArray[np.int64], info: dict[str, Any]) -> None:
        """Writes down what came of the episodes in `slots`, [M], and frees these."""
        rows = torch.from_numpy(slots)
        failed = np.flatnonzero(info["failed"]).tolist() if "failed" in info else []
        reasons = dict(zip(failed, info.get("failures", ()), strict=True))
        failures = {index: reasons[slot] for index, slot in enumerate(slots.tolist()) if slot in reasons}
        self.results.conclude(
            self._episode[slots],
            self._returns[rows].cpu().numpy(),
            self._lengths[slots],
            None if self._moments is None else self._moments[:, rows].cpu(),
            failures,
        )
        self._episode[slots] = -1

    def _refill(self) -> None:
        """Gives free slots the episodes that wait."""
        changed = self._start()
        live = np.flatnonzero(self._episode >= 0)
        self._idle = len(live) < len(self._episode)
        if len(changed) and np.isin(changed, self._acting).all():
            rows = torch.from_numpy(np.searchsorted(self._acting, changed))
            self._rows.assign(rows, self.results.members(self._episode[changed]))
        elif len(changed) or len(live) <= len(self._acting) // 2:
            # Till then slots whose episode has ended act for nothing, which costs less than a new selection.
            self._acting = live
            self._rows.select(self.results.members(self._episode[live]))
            self._slots = torch.from_numpy(live) if self._idle else slice(None)

    def _start(self) -> NDArray[np.int64]:
        """Starts episodes in free slots until none is free, none waits, or none can; returns the slots."""
        changed: list[int] = []
        while self._waiting:
            slots = np.flatnonzero(self._episode < 0)[: len(self._waiting)]
            if len(slots) == 0:
                break
            mask = np.zeros(self.env.num_envs, dtype=np.bool_)
            mask[slots] = True
            episodes = [self._waiting.popleft() for _ in range(len(slots))]
            seeds: list[int | None] = [None] * self.env.num_envs
            for slot, seed in zip(slots.tolist(), self.results.seeds.flat[episodes].tolist(), strict=True):
                seeds[slot] = seed
            reset = self.env.reset(seed=seeds, options={"reset_mask": mask})
            self._observations, info = reset
            started = info.get("started", mask)[slots]
            self._take_over(slots[started], np.array(episodes)[started])
            self._waiting.extendleft(reversed([e for e, s in zip(episodes, started, strict=True) if not s]))
            changed += slots[started].tolist()
            if "failed" in info:
                self._conclude(np.flatnonzero(info["failed"] & (self._episode >= 0)), info)
            elif not started.all():
                break
        return np.array([slot for slot in dict.fromkeys(changed) if self._episode[slot] >= 0], dtype=np.int64)

    def _take_over(self, slots: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Notes that slots hold new episodes, of which the first observation is there."""
        rows = torch.from_numpy(slots)
        self._episode[slots] = episodes
        self._lengths[slots] = 0
        self._returns[rows] = 0.0
        if self._moments is not None:
            # Sums are of deviations from the first observation, lest a large constant drown them.
            self._moments[:, rows] = 0.0
            self._moments[0, rows] = self._observations[rows].to(self._moments.dtype)
        if self._recurrent is not None:
            self._recurrent.reset(rows)
