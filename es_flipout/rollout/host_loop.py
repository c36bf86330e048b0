"""The step loop of the host: who plays in which env of a vector environment, and what comes of it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.policies import box
from es_flipout.rollout.episodes import Episodes, Ints
from es_flipout.rollout.player import PlayStoppedError
from es_flipout.rollout.policy_actions import PolicyActions
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent
from es_flipout.rollout.rows import Rows


def observation_size(env: TorchVectorEnv) -> int | None:
    """Returns how many features an environment's observations have; None if they are not vectors.

    Raises:
        ValueError: if observations are no Box.
    """
    shape = box(env.single_observation_space).shape
    return shape[0] if len(shape) == 1 else None


class HostLoop:
    """The N envs of one environment at work, each with the episode that it plays, and the episodes that wait.

    An env whose episode ends takes the next one at once.

    Attributes:
        spent_steps: envs x steps so far, live or not.
    """

    def __init__(
        self,
        env: TorchVectorEnv,
        policy: nn.Module,
        rows: Rows,
        *,
        idle_share: float = 0.5,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Sets up the loop without starting any episode.

        Args:
            env: whose envs they are.
            policy: whose members play, for its dtype and its initial state.
            rows: runs the members.
            idle_share: the policy is run for envs whose episode has ended, too, until they are this share of
                those that act: that costs less than a new selection of members.
            lock: held while results are written down, if others write to the same tables.
        """
        self.env = env
        self.spent_steps = 0
        self._rows = rows
        self._idle_share = idle_share
        self._lock = lock or contextlib.nullcontext()
        self._waiting: deque[tuple[Episodes, int]] = deque()
        num_envs, size = env.num_envs, observation_size(env)
        self._table: list[Episodes | None] = [None] * num_envs
        self._row = np.full(num_envs, -1, dtype=np.int64)  # of its table, for each env; -1 if that is free
        self._member = np.zeros(num_envs, dtype=np.int64)
        self._num_live = 0
        self._limit: int | None = None
        self._has_more = False  # whether episodes have been added since free envs were last filled
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._returns = torch.zeros(num_envs, dtype=torch.float64, device=env.device)
        self._moments = (
            None if size is None else torch.zeros(3, num_envs, size, dtype=torch.float64, device=env.device)
        )
        self._observations = torch.zeros(0)
        self._acting = np.empty(0, dtype=np.int64)  # the envs that the policy runs for, sorted
        self._acting_index: Tensor | slice = torch.from_numpy(self._acting)
        self._actions = PolicyActions(policy, env.single_action_space, env.device)
        parameters = list(policy.parameters())
        self._like = next((each for each in parameters if each.requires_grad), parameters[0])
        self._recurrent = RecurrentState(policy, num_envs) if is_recurrent(policy) else None
        # An episode that was interrupted must not be stepped on.
        env.retire(np.ones(num_envs, dtype=np.bool_))

    def add(self, episodes: Episodes, rows: Ints | None = None) -> None:
        """Has rows of a table wait (all of them if None); free envs take them at the next step.

        All tables of a loop have the same limit.

        Raises:
            ValueError: if there is a limit, and the environment cannot be reset before an episode has ended.
        """
        if episodes.limit is not None and not self.env.restarts_anytime:
            raise ValueError("an episode limit needs environments that can be reset at any time")
        chosen = range(len(episodes)) if rows is None else rows.tolist()
        self._waiting.extend((episodes, row) for row in chosen)
        self._limit, self._has_more = episodes.limit, True

    @property
    def is_playing(self) -> bool:
        """Whether any episode runs or waits."""
        return bool(self._waiting) or self._num_live > 0

    @property
    def num_lacking(self) -> int:
        """How many envs are free for which no episode waits."""
        return max(self.env.num_envs - self._num_live - len(self._waiting), 0)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Steps until all episodes have ended.

        Raises:
            PlayStoppedError: if `should_stop`, asked before every step, said so.
        """
        while self.is_playing:
            if should_stop():
                raise PlayStoppedError
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Has free envs take episodes that wait, all act, and writes down what ended."""
        if self._has_more:
            self._refill()
        if self._num_live:
            self._advance()

    def _advance(self) -> None:
        observations = self._observations
        if isinstance(self._acting_index, slice):
            actions = self._act(observations)
        else:
            some = self._act(observations[self._acting_index])
            actions = some.new_zeros(self.env.num_envs, *some.shape[1:])
            actions[self._acting_index] = some
        if self._moments is not None:
            first, sums, squares = self._moments
            deviations = observations - first
            sums += deviations
            squares.addcmul_(deviations, deviations)
        self._observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._returns += rewards
        self._lengths += 1
        self.spent_steps += self.env.num_envs
        ended = (terminated | truncated).cpu().numpy()
        if self._limit is not None:
            reached = ~ended & (self._lengths >= self._limit)
            if reached.any():
                self.env.retire(reached)
                ended |= reached
        ended &= self._row >= 0
        if ended.any():
            self._conclude(np.flatnonzero(ended), info)
            self._refill()
        elif self._waiting and self._num_live < self.env.num_envs:
            self._refill()

    def _act(self, observations: Tensor) -> Tensor:
        """Returns the actions in the envs that act, of the action space's dtype."""
        observations = observations.to(self._like)
        if self._recurrent is None:
            act = partial(self._rows, observations)
        else:
            act = partial(self._recurrent.act, self._rows, observations, self._acting_index)
        return self._actions.run(act, len(observations))

    def _conclude(self, envs: Ints, info: dict[str, Any]) -> None:
        """Writes down what came of the episodes in `envs`, int64 [M], and frees these."""
        failed = np.flatnonzero(info["failed"]).tolist() if "failed" in info else []
        reasons = dict(zip(failed, info.get("failures", ()), strict=True))
        index = torch.from_numpy(envs)
        returns = self._returns[index].cpu().numpy()
        sums = None if self._moments is None else self._moments[:, index].cpu().numpy()
        tables = {id(table): table for env in envs.tolist() if (table := self._table[env]) is not None}
        for table in tables.values():
            at = np.array([self._table[env] is table for env in envs.tolist()])
            mine = envs[at]
            faults = {place: reasons[env] for place, env in enumerate(mine.tolist()) if env in reasons}
            of_mine = None if sums is None else sums[:, at]
            with self._lock:
                table.record(self._row[mine], returns[at], self._lengths[mine], of_mine, faults)
        self._row[envs] = -1
        self._num_live -= len(envs)

    def _refill(self) -> None:
        """Gives free envs the episodes that wait."""
        self._has_more = False
        changed = self._start()
        live = np.flatnonzero(self._row >= 0)
        if len(changed) and np.isin(changed, self._acting).all():
            rows = torch.from_numpy(np.searchsorted(self._acting, changed))
            self._rows.assign(rows, torch.from_numpy(self._member[changed]))
        elif len(changed) or len(live) <= (1 - self._idle_share) * len(self._acting):
            self._acting = live
            self._rows.select(torch.from_numpy(self._member[live]))
            is_all = len(live) == self.env.num_envs
            self._acting_index = slice(None) if is_all else torch.from_numpy(live)

    def _start(self) -> Ints:
        """Starts episodes in free envs until none is free, none waits, or none can; returns the envs."""
        changed: list[int] = []
        while self._waiting:
            free = np.flatnonzero(self._row < 0)[: len(self._waiting)]
            if len(free) == 0:
                break
            mask = np.zeros(self.env.num_envs, dtype=np.bool_)
            mask[free] = True
            taken = [self._waiting.popleft() for _ in range(len(free))]
            seeds: list[int | None] = [None] * self.env.num_envs
            for env, (table, row) in zip(free.tolist(), taken, strict=True):
                seeds[env] = int(table.reset_seed[row])
            self._observations, info = self.env.reset(seed=seeds, options={"reset_mask": mask})
            started = info.get("started", mask)[free].tolist()
            pairs = list(zip(free.tolist(), taken, started, strict=True))
            self._take_over([(env, episode) for env, episode, begun in pairs if begun])
            self._waiting.extendleft(reversed([episode for _, episode, begun in pairs if not begun]))
            changed += [env for env, _, begun in pairs if begun]
            if "failed" in info:
                self._conclude(np.flatnonzero(info["failed"] & (self._row >= 0)), info)
            elif not all(started):
                break
        return np.array([env for env in dict.fromkeys(changed) if self._row[env] >= 0], dtype=np.int64)

    def _take_over(self, begun: list[tuple[int, tuple[Episodes, int]]]) -> None:
        """Notes which envs hold new episodes, of which the first observation is there."""
        for env, (table, row) in begun:
            self._table[env], self._row[env], self._member[env] = table, row, table.member[row]
        self._num_live += len(begun)
        envs = np.array([env for env, _ in begun], dtype=np.int64)
        index = torch.from_numpy(envs)
        self._lengths[envs] = 0
        self._returns[index] = 0.0
        if self._moments is not None:
            # Sums are of deviations from the first observation: of the values themselves, a large constant
            # would leave no digits for what varies.
            self._moments[:, index] = 0.0
            self._moments[0, index] = self._observations[index].to(self._moments.dtype)
        if self._recurrent is not None:
            self._recurrent.reset(index)
