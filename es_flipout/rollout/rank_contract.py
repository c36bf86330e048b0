"""What the parts of a run ask of its ranks, whether there are several or only this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from es_flipout.perturbations import Tile, compute_here
from es_flipout.rollout.player import PlayError, never

T = TypeVar("T")
R = TypeVar("R")


class RanksLostError(PlayError):
    """Some ranks have died, or do not answer.

    Attributes:
        ranks: which, if that is known.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class RankDiffersError(PlayError):
    """The state of a rank is not that of the others."""


class RefusedError(PlayError):
    """The run cannot begin; the message says why."""


@dataclass
class RankTimes:
    """Where the time of this rank has gone.

    Attributes:
        waiting: seconds for which ranks waited for the last one to finish its episodes, mean over the ranks.
        gathering: seconds between that and the answer of rank 0.
    """

    waiting: float = 0.0
    gathering: float = 0.0


class Ranks:
    """The ranks of a run, of which this process is one. Here it is alone.

    Attributes:
        is_launched: whether torchrun has started it.
        rank: which it is, from 0.
        size: how many there are.
        local_size: how many of them share this machine.
        times: where time has gone.
    """

    is_launched = False
    rank, size, local_size = 0, 1, 1

    def __init__(self) -> None:
        self.times = RankTimes()

    def start(self, problem: str | None, *, timeout: float, device: str) -> None:
        """Connects all ranks, once each is ready.

        Args:
            problem: why this rank cannot begin, if so.
            timeout: seconds that ranks wait for each other from now on.
            device: of the policy; tensors on a GPU are sent by NCCL, all else by gloo.

        Raises:
            RefusedError: on every rank, if any cannot begin or has other versions of packages than rank 0.
        """

    def together(
        self,
        action: Callable[[], T],
        answer: Callable[[list[T]], R],
        *,
        should_stop: Callable[[], bool] = never,
        is_timed: bool = False,
    ) -> R:
        """Does something on every rank, and returns what rank 0 makes of it.

        Args:
            action: what this rank does.
            answer: from what came of it on each rank to the answer for all; called by rank 0.
            should_stop: asked while others are waited for, and told to them.
            is_timed: whether the time that it takes is counted in `times`.

        Raises:
            PlayError: on all ranks, if `action` raised one on any rank, or `answer` did.
            PlayStoppedError: on all ranks, if `action` raised it on any.
            RanksLostError: if ranks have died, or do not answer in time.
        """
        return answer([action()])

    def begin_comparison(self, digest: bytes) -> None:
        """Begins to compare something that must be the same on all ranks."""

    def finish_comparison(self) -> None:
        """Waits for the comparison that was begun, if any.

        Raises:
            RankDiffersError: on all ranks, if one differs; the message names it.
            RanksLostError: see `together`.
        """

    def stop_request(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Returns a function that says whether any rank has been asked to stop.

        Args:
            should_stop: says whether this process has.
        """
        return should_stop

    def counter(self) -> Callable[[int], int] | None:
        """Returns a function that adds to a new shared counter and returns the new total; None if alone."""
        return None

    def compute_tiles(self, tiles: Sequence[Tile]) -> list[Tensor]:
        """Returns the values of tiles, shared out over the ranks if that is worth it."""
        return compute_here(tiles)

    def subgroup(self, count: int) -> Ranks:
        """Returns the first of these ranks as a group of their own, connected; all must call this.

        The others get one, too, but can do nothing with it.
        """
        return self

    def close(self) -> None:
        """Leaves the others."""


ALONE = Ranks()
"""The only rank of a run."""
