"""The ranks of a run: processes, perhaps on many machines, that torchrun has started to do one run together.

Whenever ranks have something to tell each other, each tells rank 0, and rank 0 gives all of them the same
answer: what came of the episodes, whether anyone was asked to stop, what went wrong and where. So all of them
know the same, and do the same next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from typing_extensions import override

from es_flipout.perturbations import Tile, compute_here
from es_flipout.rollout.exchange import (
    SECONDS_BETWEEN_LOOKS,
    Answer,
    ExchangeThread,
    Said,
    SharedRequest,
    answer_of,
    odd_ones,
    value_of,
)
from es_flipout.rollout.handshake import meet, verdict_on, versions
from es_flipout.rollout.messages import gather, spread
from es_flipout.rollout.player import PlayError, PlayStoppedError, never
from es_flipout.rollout.rank_contract import RankDiffersError, Ranks, RanksLostError, RefusedError
from es_flipout.rollout.rank_store import RankStore

T = TypeVar("T")
R = TypeVar("R")

START_SECONDS = 1800.0
"""How long ranks wait for each other while environments are made and kernels are compiled."""
ALIGNMENT = 16
"""Bytes; values of any dtype may begin at a multiple of it."""


@dataclass(frozen=True)
class _Exchange(Generic[R]):
    """An exchange under way: its number, and the answer to come."""

    number: int
    future: Future[Answer[R]]


class ProcessGroup(Ranks):
    """Several ranks, or one that torchrun has started alone, connected by torch.distributed."""

    is_launched = True

    def __init__(self, store: Store, rank: int, size: int, *, local_size: int) -> None:
        """Takes what `torch.distributed.rendezvous` gave; `start` connects the ranks.

        Args:
            store: shared by all.
            rank: of this process.
            size: number of ranks.
            local_size: how many are on this machine.
        """
        super().__init__()
        self.rank, self.size, self.local_size = rank, size, local_size
        self._store = RankStore(store, rank)
        self._timeout = START_SECONDS
        self._thread = ExchangeThread()
        self._comparison: _Exchange[str] | None = None
        self._groups: dict[str, dist.ProcessGroup | None] = {}  # by the device of what they send

    @classmethod
    def of_environment(cls) -> ProcessGroup:
        """Returns the rank that torchrun has made this process.

        Raises:
            ValueError: if nobody answers at MASTER_ADDR, or not all ranks come.
        """
        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
            store = meet(store, rank, size, seconds=START_SECONDS)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"the ranks cannot meet in torchrun's store: {error}") from error
        return cls(
            PrefixStore("es_flipout", store),
            rank,
            size,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE") or 1),
        )

    # The start.

    def publish(self, beginning: object) -> None:
        """Tells the other ranks, from rank 0, what the run begins with; it is pickled."""
        self._store.put("beginning", beginning)

    def published(self) -> Any:
        """Waits for what rank 0 publishes, and returns it.

        Raises:
            RefusedError: if rank 0 could not begin.
        """
        if (beginning := self._store.awaited("beginning", START_SECONDS)) is None:
            raise RefusedError("rank 0 could not begin")
        return beginning

    def refuse(self) -> None:
        """Tells the other ranks, from rank 0, that the run cannot begin, if it has not."""
        with suppress(RuntimeError):  # nobody is there to be told
            self._store.put("verdict", "rank 0 could not begin")
            if not self._store.has("beginning"):
                self._store.put("beginning", None)

    @override
    def start(self, problem: str | None, *, timeout: float, device: str) -> None:
        self._store.put(f"ready/{self.rank}", (problem, versions()))
        if self.rank == 0:
            states = [self._store.awaited(f"ready/{rank}", START_SECONDS) for rank in range(self.size)]
            self._store.put("verdict", verdict_on(states))
        if verdict := self._store.awaited("verdict", START_SECONDS):
            raise RefusedError(verdict)
        self._timeout = timeout
        limit = timedelta(seconds=timeout)
        store = PrefixStore("gloo", self._store.store)
        try:
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=limit)
            self._groups = {"cpu": dist.group.WORLD}
            if device.startswith("cuda"):
                self._groups["cuda"] = dist.new_group(backend="nccl", timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise RefusedError(f"the ranks cannot connect: {str(error).partition(chr(10))[0]}") from error

    @override
    def subgroup(self, count: int) -> ProcessGroup:
        part = ProcessGroup(
            PrefixStore(f"first/{count}", self._store.store), self.rank, count, local_size=self.local_size
        )
        part._timeout = self._timeout
        limit = timedelta(seconds=self._timeout)
        backends = {"cpu": "gloo", "cuda": "nccl"}
        for device in self._groups:
            group = dist.new_group(list(range(count)), backend=backends[device], timeout=limit)
            part._groups[device] = group if self.rank < count else None
        return part

    # What ranks do together.

    @override
    def together(
        self,
        action: Callable[[], T],
        answer: Callable[[list[T]], R],
        *,
        should_stop: Callable[[], bool] = never,
        is_timed: bool = False,
    ) -> R:
        if self.size == 1:
            return answer([action()])
        started = time.perf_counter()
        try:
            said = Said(action(), seconds=time.perf_counter() - started)
        except PlayStoppedError:
            said = Said(is_stopped=True)
        except PlayError as error:
            said = Said(error=str(error))
        arrived = time.perf_counter()
        found: Answer[R] = self._wait(self._exchange(said, answer), self.stop_request(should_stop))
        if is_timed:
            waited = max(found.slowest - said.seconds, 0.0)
            self.times.waiting += found.slowest - found.mean
            self.times.gathering += max(time.perf_counter() - arrived - waited, 0.0)
        return value_of(found)

    @override
    def begin_comparison(self, digest: bytes) -> None:
        self._comparison = self._exchange(Said(digest), odd_ones)

    @override
    def finish_comparison(self) -> None:
        comparison, self._comparison = self._comparison, None
        if comparison is not None and (odd := value_of(self._wait(comparison, never))):
            raise RankDiffersError(odd)

    def _exchange(self, said: Said[T], answer: Callable[[list[T]], R]) -> _Exchange[R]:
        """Begins to tell rank 0 something; what comes of it is the answer for all."""
        number = self._store.next_number()

        def exchange() -> Answer[R]:
            self._store.arrive(number)
            heard = gather(said, self._groups["cpu"], self.rank, self.size)
            answered: Answer[R] = spread(answer_of(heard, answer) if heard else None, self._groups["cpu"])
            return answered

        return _Exchange(number, self._thread.submit(exchange))

    def _wait(self, exchange: _Exchange[R], should_stop: Callable[[], bool]) -> Answer[R]:
        """Waits for the others, and goes on listening to signals.

        Raises:
            RanksLostError: if they cannot be reached.
        """
        while True:
            try:
                return exchange.future.result(timeout=SECONDS_BETWEEN_LOOKS)
            except TimeoutError:
                should_stop()  # which tells the others
            except RuntimeError as error:
                raise self._lost(error, exchange.number) from error

    def _lost(self, error: RuntimeError, number: int) -> RanksLostError:
        """Returns the error for an exchange that failed."""
        if "timed out" not in str(error).lower():
            return RanksLostError("another rank has died, or the connection to it is lost")
        missing = []
        with suppress(RuntimeError):  # the store may be gone as well
            missing = [rank for rank in range(self.size) if not self._store.has_arrived(rank, number)]
        who = ", ".join(map(str, missing)) or "unknown"
        return RanksLostError(
            f"rank {who} did not answer within {self._timeout:g} seconds (rank_timeout)", missing
        )

    @override
    def stop_request(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        return SharedRequest(self._store.store, should_stop)

    @override
    def counter(self) -> Callable[[int], int] | None:
        return None if self.size == 1 else self._store.counter()

    @override
    def compute_tiles(self, tiles: Sequence[Tile]) -> list[Tensor]:
        if self.size == 1 or not any(tile.is_part for tile in tiles):
            return compute_here(tiles)
        places = _places(tiles, self.size)
        device = tiles[0].device
        mine = torch.empty(max(place.stop for _, place in places), dtype=torch.uint8, device=device)
        for tile, (rank, place) in zip(tiles, places, strict=True):
            if rank == self.rank:
                mine[place] = tile.compute().contiguous().view(-1).view(torch.uint8)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        number = self._store.next_number()
        try:
            self._store.arrive(number)
            dist.all_gather(gathered, mine, group=self._groups[device.type])
        except RuntimeError as error:
            raise self._lost(error, number) from error
        return [
            gathered[rank][place].view(tile.dtype).view(tile.shape)
            for tile, (rank, place) in zip(tiles, places, strict=True)
        ]

    @override
    def close(self) -> None:
        # Nothing may be left of the groups when Python ends: their threads would need it.
        self._groups.clear()
        if self._thread.end() and dist.is_initialized():
            dist.destroy_process_group()


def _places(tiles: Sequence[Tile], size: int) -> list[tuple[int, slice]]:
    """Returns which of `size` ranks computes each tile, and where the value's bytes are in what it sends."""
    ends, places = [0] * size, []
    for index, tile in enumerate(tiles):
        rank = index % size
        start = ends[rank] + -ends[rank] % ALIGNMENT
        ends[rank] = start + tile.shape.numel() * tile.dtype.itemsize
        places.append((rank, slice(start, ends[rank])))
    return places
