"""Who plays in which env of a vector environment, and what comes of it, for all step loops of the host."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.policies import box
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.moments import Ints
from es_flipout.rollout.player import PlayStoppedError

if TYPE_CHECKING:
    from es_flipout.rollout.action_noise import ActionNoise


def observation_size(env: TorchVectorEnv) -> int | None:
    """Returns how many features an environment's observations have; None if they are not vectors.

    Raises:
        ValueError: if observations are no Box.
    """
    shape = box(env.single_observation_space).shape
    return shape[0] if len(shape) == 1 else None


class StepLoop(ABC):
    """The N envs of one environment at work, each with the episode that it plays, and the episodes that wait.

    An env whose episode ends takes the next one at once.

    Attributes:
        spent_steps: envs x steps so far, live or not.
    """

    def __init__(self, env: TorchVectorEnv, *, lock: AbstractContextManager[Any] | None = None) -> None:
        """Sets up the loop without starting any episode.

        Args:
            env: whose envs they are.
            lock: held while results are written down, if others write to the same tables.
        """
        self.env = env
        self.spent_steps = 0
        self._lock = lock or contextlib.nullcontext()
        self._waiting: deque[tuple[Episodes, int]] = deque()
        num_envs, size = env.num_envs, observation_size(env)
        self._table: list[Episodes | None] = [None] * num_envs
        self._row = np.full(num_envs, -1, dtype=np.int64)  # of its table, for each env; -1 if that is free
        self._member = np.zeros(num_envs, dtype=np.int64)
        self._num_live = 0
        self._limit: int | None = None
        self._noise: ActionNoise | None = None
        self._has_more = False  # whether episodes have been added since free envs were last filled
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._returns = torch.zeros(num_envs, dtype=torch.float64, device=env.device)
        self._moments = (
            None if size is None else torch.zeros(3, num_envs, size, dtype=torch.float64, device=env.device)
        )
        self._observations = torch.zeros(0)
        # An episode that was interrupted must not be stepped on.
        env.retire(np.ones(num_envs, dtype=np.bool_))

    def add(self, episodes: Episodes, rows: Ints | None = None) -> None:
        """Has rows of a table wait (all of them if None); free envs take them at the next step.

        All tables of a loop have the same limit and the same action noise.

        Raises:
            ValueError: if there is a limit, and the environment cannot be reset before an episode has ended;
                or if there is noise, and actions are not a Box of floats.
        """
        if episodes.limit is not None and not self.env.restarts_anytime:
            raise ValueError("an episode limit needs environments that can be reset at any time")
        if episodes.action_noise and self._noise is None:
            from es_flipout.rollout.action_noise import ActionNoise  # which imports numba

            env = self.env
            self._noise = ActionNoise(
                episodes.action_noise, env.single_action_space, env.num_envs, env.device
            )
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

    @abstractmethod
    def _advance(self) -> None:
        """Has all live envs act, and writes down what ended."""

    @abstractmethod
    def _hand_over(self, changed: Ints) -> None:
        """Takes note that envs, [M], play other episodes now, and that some may play none any more."""

    def _retire_at_limit(self, ended: NDArray[np.bool_]) -> None:
        """Ends the episodes that have as many steps as they may; they are added to those that have ended."""
        if self._limit is None:
            return
        reached = ~ended & (self._lengths >= self._limit)
        if reached.any():
            self.env.retire(reached)
            ended |= reached

    def _continue(self, ended: NDArray[np.bool_], info: dict[str, Any]) -> None:
        """Writes down what came of the episodes that have ended, bool [N], and starts others."""
        ended &= self._row >= 0
        if ended.any():
            self._conclude(np.flatnonzero(ended), info)
            self._refill()
        elif self._waiting and self._num_live < self.env.num_envs:
            self._refill()

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
        self._hand_over(self._start())

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
        if self._noise is not None:
            seeds = np.array([table.reset_seed[row] for _, (table, row) in begun], dtype=np.int64)
            self._noise.begin(envs, seeds)
        index = torch.from_numpy(envs)
        self._lengths[envs] = 0
        self._returns[index] = 0.0
        if self._moments is not None:
            # Sums are of deviations from the first observation: of the values themselves, a large constant
            # would leave no digits for what varies.
            self._moments[:, index] = 0.0
            self._moments[0, index] = self._observations[index].to(self._moments.dtype)
