"""Which episodes go to which worker next, and what happens to those of a worker that died.

Blocks go out as workers become free, in shares that get smaller towards the end, so that all workers end at
about the same time. Since a return depends on nothing but the member and the seed, who plays a block changes
no result.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection

import numpy as np

from es_flipout.rollout.episodes import Episodes, Ints

MAX_DEATHS = 3
"""How many workers a member may take with it, alone in their hands, before its episodes count as failed."""
SHARES_PER_WORKER = 4
"""A share holds the blocks that wait, divided by this many shares for every worker."""
MAX_EPISODES_AHEAD = 1024
"""How large a share sent in advance may be: it must fit into a pipe that nobody reads yet."""


class Shares:
    """The episodes of a table that wait to be played, in shares, and the results of the others."""

    def __init__(self, episodes: Episodes, num_workers: int) -> None:
        """Takes a table, of which nothing has been played."""
        self._episodes = episodes
        self._num_workers = num_workers
        self._blocks = deque(episodes.blocks())
        self._suspects: deque[Ints] = (
            deque()
        )  # ids with which more than one worker died, in ever smaller shares
        self._died_with: set[int] = set()
        self._deaths: Counter[int] = Counter()  # of workers alone with a share, by its first id

    @property
    def done(self) -> bool:
        """Whether all episodes have been played."""
        return not self._episodes.unplayed

    def next(self, in_hand: Collection[Episodes], num_envs: int) -> Episodes | None:
        """Returns what a worker is to play next; None if nothing waits, or it has enough.

        A worker gets as much as it plays at a time, and one share in advance as long as every other worker
        would still find as much. It gets suspects by themselves.

        Args:
            in_hand: what it has been given and has not answered.
            num_envs: episodes that it plays at a time.
        """
        if self._suspects and not in_hand:
            return self._episodes.take(self._suspects.popleft())
        if any(self._is_suspect(share) for share in in_hand):
            return None
        count = min(self._num_blocks(sum(map(len, in_hand)), num_envs), len(self._blocks))
        if not count:
            return None
        return self._episodes.take(np.concatenate([self._blocks.popleft() for _ in range(count)]))

    def _num_blocks(self, in_hand: int, num_envs: int) -> int:
        size, waiting = self._episodes.block_size, len(self._blocks)
        share = max(math.ceil(waiting / (SHARES_PER_WORKER * self._num_workers)), 1)
        room = num_envs - in_hand
        if in_hand == 0 or room >= size:
            return min(max(room // size, 1), share)
        others_find_enough = waiting * size > self._num_workers * num_envs
        if others_find_enough and in_hand <= max(num_envs, share * size):
            return min(share, max(MAX_EPISODES_AHEAD // size, 1))
        return 0

    def _is_suspect(self, share: Episodes) -> bool:
        """Returns whether a worker has died with a share before."""
        return not self._died_with.isdisjoint(share.ids.tolist())

    def give_back(self, share: Episodes) -> None:
        """Has a share wait again that no worker has begun with."""
        ends = np.flatnonzero(np.diff(share.ids // share.block_size)) + 1
        self._blocks.extendleft(reversed(np.split(share.ids, ends)))

    def lose(self, share: Episodes, reason: str) -> None:
        """Has a share wait again whose worker died: as it was at first, then in halves.

        Episodes of a single member with which `MAX_DEATHS` workers have died have failed.
        """
        suspect = self._is_suspect(share)
        self._died_with.update(share.ids.tolist())
        starts = np.flatnonzero(np.diff(share.member)) + 1  # rows where another member begins
        if len(starts):
            half = starts[len(starts) // 2]
            self._suspects += [share.ids[:half], share.ids[half:]] if suspect else [share.ids]
            return
        first, count = int(share.ids[0]), len(share)
        self._deaths[first] += 1
        if self._deaths[first] < MAX_DEATHS:
            self._suspects.append(share.ids)
            return
        nothing = np.zeros(count, np.int64)
        share.record(
            np.arange(count), np.full(count, np.nan), nothing, faults=dict.fromkeys(range(count), reason)
        )
        self._episodes.put(share)

    def put(self, played: Episodes) -> None:
        """Writes down what came of a share."""
        self._episodes.put(played)
