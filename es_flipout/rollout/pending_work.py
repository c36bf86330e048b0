"""What is left to do of an evaluation: which members go out next, what came of them, what got lost."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import torch

from es_flipout.rollout.episodes import Results
from es_flipout.rollout.worker_main import Answer, Chunk

MAX_DEATHS = 3
"""How many workers a member may take with it, alone in their hands, before it counts as failed."""
CHUNKS_A_WORKER = 4
"""A guided chunk holds the members that wait, over this many chunks for every worker."""
MAX_EPISODES_AHEAD = 1024
"""How long a chunk may be that is sent in advance: it must fit into a pipe that nobody reads yet."""


class PendingWork:
    """The members of a population that wait to be evaluated, and the results of the others."""

    def __init__(self, results: Results, template: Chunk, num_workers: int, guided: bool) -> None:
        size, self._episodes = results.seeds.shape
        self._results = results
        self._template = template
        self._share: int = math.ceil(size / num_workers)
        self._guided_chunks = CHUNKS_A_WORKER * num_workers if guided else 0
        self.slot_steps = 0
        self._waiting = deque(range(size))
        self._lost: deque[list[int]] = deque()  # members whose worker died, in ever smaller chunks
        self._deaths: Counter[int] = Counter()
        self._unfinished = size

    @property
    def done(self) -> bool:
        """Whether all members have been evaluated."""
        return not self._unfinished

    @property
    def chunk_size(self) -> int:
        """How many members go out together."""
        if not self._guided_chunks:
            return self._share
        size: int = math.ceil(len(self._waiting) / self._guided_chunks)
        return size + size % 2 if size > 1 else size  # both members of an antithetic pair have one noise

    @property
    def may_go_ahead(self) -> bool:
        """Whether a worker may be given a chunk while it has another."""
        return self._guided_chunks > 0 and 1 < self.chunk_size <= MAX_EPISODES_AHEAD // self._episodes

    def next_members(self) -> list[int]:
        """Returns the members of the next chunk; none if none waits."""
        if self._lost:
            return self._lost.popleft()
        return [self._waiting.popleft() for _ in range(min(self.chunk_size, len(self._waiting)))]

    def chunk(self, members: list[int]) -> Chunk:
        """Returns the chunk of these members."""
        return replace(self._template, members=members, seeds=self._results.seeds[members])

    def give_back(self, members: list[int]) -> None:
        """Has members wait again that no worker has begun with."""
        self._waiting.extendleft(reversed(members))

    def lose(self, members: list[int], reason: str) -> None:
        """Has members wait again whose worker died, in halves.

        A single one with which `MAX_DEATHS` workers have died has failed.
        """
        if len(members) > 1:
            half = len(members) // 2
            self._lost += [members[:half], members[half:]]
            return
        (member,) = members
        self._deaths[member] += 1
        if self._deaths[member] < MAX_DEATHS:
            self._lost.append(members)
            return
        answer = Answer.of(self._episodes, self._results.observation_size)
        answer.failures = dict.fromkeys(range(self._episodes), reason)
        self.record(members, answer)

    def record(self, members: list[int], answer: Answer) -> None:
        """Writes down what came of members."""
        first = np.array(members)[:, np.newaxis] * self._episodes
        self._results.conclude(
            (first + np.arange(self._episodes)).ravel(),
            answer.returns,
            answer.lengths,
            None if answer.moments is None else torch.from_numpy(answer.moments),
            answer.failures,
        )
        self.slot_steps += answer.slot_steps
        self._unfinished -= len(members)
