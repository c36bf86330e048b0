"""How ranks tell each other what they know: each says something to rank 0, which answers all of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from torch.distributed.distributed_c10d import Store

from es_flipout.rollout.player import PlayError, PlayStoppedError

SECONDS_BETWEEN_LOOKS = 0.2
"""How long a request to stop that another rank got may go unnoticed."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Said(Generic[T]):
    """What a rank tells rank 0: a value, or why it has none; and how long that took."""

    value: T | None = None
    error: str | None = None
    is_stopped: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What rank 0 tells all, and how long the ranks took: the slowest, and their mean."""

    value: R | None
    error: str | None
    is_stopped: bool
    slowest: float
    mean: float


def answer_of(heard: Sequence[Said[T]], answer: Callable[[list[T]], R]) -> Answer[R]:
    """Returns what rank 0 answers to what all ranks said."""
    seconds = [each.seconds for each in heard]
    times = max(seconds), sum(seconds) / len(seconds)
    for rank, each in enumerate(heard):
        if each.error is not None:
            return Answer(None, f"rank {rank}: {each.error}", False, *times)
    if any(each.is_stopped for each in heard):
        return Answer(None, None, True, *times)
    values: list[Any] = [each.value for each in heard]
    try:
        return Answer(answer(values), None, False, *times)
    except PlayError as error:
        return Answer(None, str(error), False, *times)


def value_of(answer: Answer[R]) -> R:
    """Returns the value of an answer, or raises what it says."""
    if answer.error is not None:
        raise PlayError(answer.error)
    if answer.is_stopped:
        raise PlayStoppedError
    return cast(R, answer.value)


def odd_ones(digests: Sequence[bytes]) -> str:
    """Returns which ranks have another digest than most others, or than rank 0; empty if none has."""
    usual = max(digests, key=digests.count)  # the first of several
    odd = [rank for rank, digest in enumerate(digests) if digest != usual]
    if not odd:
        return ""
    which = f"rank {odd[0]} has" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} have"
    return (
        f"{which} a different state than the other ranks after the same generation: a different model of CPU "
        "or GPU, different code, or faulty hardware"
    )


class ExchangeThread:
    """A thread on which exchanges wait, one after the other; it never keeps the process from ending."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._last: Future[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="exchanges", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Has a function called, and returns what will come of it."""
        future: Future[T] = Future()
        self._last = future
        self._work.put((function, future))
        return future

    def end(self) -> bool:
        """Ends the thread, and returns whether that is possible: it waits for nobody."""
        if self._last is not None and not self._last.done():
            return False
        self._work.put(None)
        self._thread.join()
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            function, future = work
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


class SharedRequest:
    """Whether this process, or any other rank, has been asked to stop, as the store knows."""

    def __init__(self, store: Store, should_stop: Callable[[], bool]) -> None:
        self._store, self._should_stop = store, should_stop
        self._is_known = False
        self._next_look = 0.0

    def __call__(self) -> bool:
        """Returns whether that is so, and tells the others if this process has been asked."""
        if self._is_known:
            return True
        if self._should_stop():
            self._is_known = True
            with suppress(RuntimeError):  # torchrun may be gone
                self._store.set("stop", "")
        elif (now := time.monotonic()) >= self._next_look:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            with suppress(RuntimeError):
                self._is_known = self._store.check(["stop"])
        return self._is_known
