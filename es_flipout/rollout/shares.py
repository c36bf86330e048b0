"""Which episodes go to which worker next, and what happens to those of a worker that died.

Work goes out as workers become free, in shares that get smaller towards the end, so that all workers end at
about the same time. Since a return depends on nothing but the member and the seed, it makes no difference who
plays an episode.
"""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.moments import Ints

MAX_DEATHS = 3
"""Workers that may die while playing only one member's episodes, before these count as failed."""
MAX_EPISODES_AHEAD = 1024
"""How large a share sent in advance may be: it must fit into a pipe that nobody reads yet."""


class Shares:
    """The rows of a table that have been claimed and wait to be played, and those that workers died with."""

    def __init__(
        self,
        episodes: Episodes,
        claims: Claims,
        num_workers: int,
        *,
        by_member: bool = False,
        company: int | None = None,
    ) -> None:
        """Takes a table of which nothing has been played.

        Args:
            episodes: the table.
            claims: gives out its blocks.
            num_workers: how many share the work.
            by_member: whether all episodes of a member that have been claimed together go to one worker.
            company: if given, a worker gets so many episodes, and no others until it has played these.
        """
        self._episodes, self._claims = episodes, claims
        self._num_workers, self._company = num_workers, company
        self._by_member = by_member
        self._unit_size = max(len(episodes) // len(episodes.runs_of_members()), 1) if by_member else 1
        self._units: deque[Ints] = deque()
        self._suspects: deque[Ints] = deque()  # rows that workers died with, in ever smaller shares
        self._died_with: set[int] = set()
        self._deaths: Counter[int] = Counter()  # of workers alone with a share, by its first row

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits here, and nothing is left to claim."""
        return not (self._claims.num_waiting or self._units or self._suspects)

    def next(self, room: int, num_envs: int, *, is_idle: bool) -> Ints | None:
        """Returns the rows that a worker is to play next; None if nothing waits, or others need it more.

        A worker gets as much as it has room for, and one share in advance as long as every other worker would
        still find as much. Suspects come last, and by themselves.

        Args:
            room: envs that it has said are free, for which it has been given nothing since.
            num_envs: episodes that it plays at a time.
            is_idle: whether it has nothing in hand.
        """
        if self._company is not None:
            units = self._take(self._company) if is_idle else []
        else:
            units = self._take(self._num_units(room, num_envs))
        if units:
            return np.concatenate(units)
        return self._suspects.popleft() if self._suspects and is_idle else None

    def _num_units(self, room: int, num_envs: int) -> int:
        size, claims = self._unit_size, self._claims
        fitting, held = math.ceil(room / size), len(self._units) * size
        if claims.is_scarce(self._num_workers * num_envs, held):
            return fitting
        share = math.ceil(claims.fair_share(held, self._num_workers) / size)
        return max(min(share, MAX_EPISODES_AHEAD // size), fitting)

    def _take(self, number: int) -> list[Ints]:
        """Takes so many units, or what is left."""
        while (lacking := number - len(self._units)) > 0 and self._claims.num_waiting:
            rows = self._claims.claim(lacking * self._unit_size)
            member = self._episodes.member[rows]
            begins = np.diff(member) != 0 if self._by_member else np.ones(len(rows), np.bool_)[1:]
            self._units += np.split(rows, np.flatnonzero(begins) + 1) if len(rows) else []
        return [self._units.popleft() for _ in range(min(number, len(self._units)))]

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
