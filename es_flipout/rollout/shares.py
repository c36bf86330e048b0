"""Which episodes go to which worker next, and what happens to those of a worker that died.

Work goes out as workers become free, in shares that get smaller towards the end, so that all workers end at
about the same time. Since a return depends on nothing but the member and the seed, it makes no difference who
plays an episode.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from es_flipout.rollout.episodes import Episodes, Ints

MAX_DEATHS = 3
"""Workers that may die while playing only one member's episodes, before these count as failed."""
SHARES_PER_WORKER = 4
"""A share in advance holds what waits, divided by this many shares for every worker."""
MAX_EPISODES_AHEAD = 1024
"""How large a share sent in advance may be: it must fit into a pipe that nobody reads yet."""


class Shares:
    """The rows of a table that wait to be played, and those that workers died with."""

    def __init__(
        self, episodes: Episodes, units: Sequence[Ints], num_workers: int, *, is_dealt: bool = False
    ) -> None:
        """Takes a table of which nothing has been played.

        Args:
            episodes: the table.
            units: rows that are always handed out together.
            num_workers: how many share the work.
            is_dealt: whether unit i is for worker i, whoever is free when.
        """
        self._episodes = episodes
        self._num_workers = num_workers
        self._dealt = dict(enumerate(units)) if is_dealt else {}
        self._units = deque([] if is_dealt else units)
        self._unit_size = max(len(episodes) // max(len(units), 1), 1)
        self._suspects: deque[Ints] = deque()  # rows that workers died with, in ever smaller shares
        self._died_with: set[int] = set()
        self._deaths: Counter[int] = Counter()  # of workers alone with a share, by its first row

    def next(self, worker: int, room: int, num_envs: int, *, is_idle: bool) -> Ints | None:
        """Returns the rows that a worker is to play next; None if nothing waits, or others need it more.

        A worker gets as much as it has room for, and one share in advance as long as every other worker would
        still find as much. Suspects come last, and by themselves.

        Args:
            worker: its number.
            room: envs that it has said are free, for which it has been given nothing since.
            num_envs: episodes that it plays at a time.
            is_idle: whether it has nothing in hand.
        """
        if worker in self._dealt:
            return self._dealt.pop(worker)
        count = min(self._num_units(room, num_envs), len(self._units))
        if count:
            return np.concatenate([self._units.popleft() for _ in range(count)])
        return self._suspects.popleft() if self._suspects and is_idle else None

    def _num_units(self, room: int, num_envs: int) -> int:
        fitting, waiting = math.ceil(room / self._unit_size), len(self._units)
        if waiting * self._unit_size <= self._num_workers * num_envs:
            return fitting
        share = math.ceil(waiting / (SHARES_PER_WORKER * self._num_workers))
        return max(min(share, MAX_EPISODES_AHEAD // self._unit_size), fitting)

    def is_suspect(self, rows: Ints) -> bool:
        """Returns whether a worker has died with some of these rows."""
        return not self._died_with.isdisjoint(rows.tolist())

    def lose(self, rows: Ints, reason: str) -> bool:
        """Queues rows again whose worker died: as they were at first, then in halves.

        Episodes of a single member with which `MAX_DEATHS` workers have died have failed.

        Returns:
            Whether that is what came of them.
        """
        suspect = self.is_suspect(rows)
        self._died_with.update(rows.tolist())
        starts = np.flatnonzero(np.diff(self._episodes.member[rows])) + 1  # where another member begins
        if len(starts):
            half = starts[len(starts) // 2]
            self._suspects += [rows[:half], rows[half:]] if suspect else [rows]
            return False
        first, count = int(rows[0]), len(rows)
        self._deaths[first] += 1
        if self._deaths[first] < MAX_DEATHS:
            self._suspects.append(rows)
            return False
        faults = dict.fromkeys(range(count), reason)
        self._episodes.record(rows, np.full(count, np.nan), np.zeros(count, np.int64), faults=faults)
        return True
