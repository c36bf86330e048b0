"""An event simulation of ranks that play the episodes of one table.

The rules are those of `HostPlayer` and `Claims`. Before a step, a rank that has more free envs than waiting
episodes claims blocks of consecutive episodes: enough to fill these envs, or, as long as more episodes wait
than all envs can take, a quarter of this rank's even share of what waits. All envs of a rank are then
stepped together until an episode ends. The store answers claims one at a time, in the order of their
arrival, and the rank waits for the answer.

Simplifications: a rank steps all of its envs together, as a single process does, so a rank with several cores
is one faster process; starting an episode costs nothing; only the lengths of episodes vary.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scaling.lengths import Ints
from es_flipout.rollout.claims import SHARES_PER_PLAYER


@dataclass(frozen=True)
class Store:
    """What answers claims.

    Attributes:
        latency: seconds from a claim to its answer if nobody else claims, at least `service`.
        service: seconds for which a claim keeps it busy.
    """

    latency: float
    service: float


@dataclass
class RankPlays:
    """What has become of one rank.

    Attributes:
        played: rows of the table.
        num_blocks: blocks that it has claimed.
        num_claims: how often it has asked the store.
        claiming: seconds for which it has waited for the store.
        stepping: seconds of its steps.
        env_steps: live env steps.
        finished: when it had nothing left to do.
    """

    played: list[int] = field(default_factory=list)
    num_blocks: int = 0
    num_claims: int = 0
    claiming: float = 0.0
    stepping: float = 0.0
    env_steps: int = 0
    finished: float = 0.0


class _Rank:
    """A rank at work: the episodes in its envs, and those that wait."""

    def __init__(self, num_envs: int, num_waiting: int) -> None:
        self.result = RankPlays()
        self.waiting: deque[int] = deque()
        self.num_envs, self.known_waiting = num_envs, num_waiting
        self._ends: list[int] = []  # for each live env, the step with which its episode ends
        self._steps = 0

    @property
    def num_lacking(self) -> int:
        """How many envs are free for which no episode waits."""
        return max(self.num_envs - len(self._ends) - len(self.waiting), 0)

    def play_on(self, lengths: Sequence[int], step_seconds: Callable[[int], float]) -> float | None:
        """Steps until the next episode ends; returns the seconds, or None if there is nothing to play."""
        while self.waiting and len(self._ends) < self.num_envs:
            row = self.waiting.popleft()
            heapq.heappush(self._ends, self._steps + lengths[row])
            self.result.played.append(row)
            self.result.env_steps += lengths[row]
        if not self._ends:
            return None
        end, live = self._ends[0], len(self._ends)
        seconds = (end - self._steps) * step_seconds(live)
        self._steps = end
        while self._ends and self._ends[0] == end:
            heapq.heappop(self._ends)
        self.result.stepping += seconds
        return seconds


def play(
    lengths: Ints,
    num_ranks: int,
    num_envs: int,
    step_seconds: Callable[[int], float],
    *,
    block_size: int,
    store: Store | None,
) -> list[RankPlays]:
    """Plays a table, from the moment at which all ranks begin.

    Args:
        lengths: env steps of every episode, in the order of the table, int64 [P].
        num_ranks: how many ranks play.
        num_envs: episodes that each of them plays at a time.
        step_seconds: of so many envs that one rank steps together.
        block_size: consecutive episodes that are claimed together.
        store: answers claims; None if every rank is given a share of consecutive episodes at the start.

    Returns:
        What became of each rank.
    """
    table, size = lengths.tolist(), len(lengths)
    num_claimed, free_at = 0, 0.0  # blocks, and when the store has answered all
    ranks = [_Rank(num_envs, size) for _ in range(num_ranks)]
    if store is None:
        for rank, share in zip(ranks, np.array_split(np.arange(size), num_ranks), strict=True):
            rank.waiting.extend(share.tolist())
            rank.known_waiting, rank.result.num_blocks = 0, math.ceil(len(share) / block_size)
    events = [(0.0, number) for number in range(num_ranks)]
    while events:
        now, number = heapq.heappop(events)
        rank = ranks[number]
        if store is not None and rank.num_lacking and rank.known_waiting:
            ahead = _ahead(rank.known_waiting, num_envs, num_ranks)
            blocks = math.ceil(max(rank.num_lacking, ahead) / block_size)
            begins = max(now, free_at)
            free_at = begins + store.service
            first, last = (min(each * block_size, size) for each in (num_claimed, num_claimed + blocks))
            num_claimed += blocks
            rank.waiting.extend(range(first, last))
            rank.known_waiting = size - last
            rank.result.num_claims += 1
            rank.result.num_blocks += math.ceil((last - first) / block_size)
            rank.result.claiming += begins + store.latency - now
            heapq.heappush(events, (begins + store.latency, number))
            continue
        seconds = rank.play_on(table, step_seconds)
        if seconds is None:
            rank.result.finished = now
        else:
            heapq.heappush(events, (now + seconds, number))
    return [rank.result for rank in ranks]


def _ahead(num_waiting: int, num_envs: int, num_ranks: int) -> int:
    """Returns how many episodes a rank takes in advance; see `Claims.fair_share` and `Claims.is_scarce`."""
    if num_waiting <= num_envs * num_ranks:
        return 0
    return num_waiting if num_ranks == 1 else math.ceil(num_waiting / (SHARES_PER_PLAYER * num_ranks))
