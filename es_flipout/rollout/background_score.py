"""Scores the center beside training, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.connection import Connection

import cloudpickle  # type: ignore[import-untyped]
from torch import nn

from es_flipout.error_text import error_text
from es_flipout.perturbations import copy_module
from es_flipout.processes import Worker, WorkerDiedError, end_workers, use_one_thread
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.player import PlayError, PlayStoppedError, never
from es_flipout.rollout.quick_score import QuickScorer, ScorerNotMadeError

SECONDS_BETWEEN_LOOKS = 0.1
"""How long `BackgroundScorer.result` waits before it asks again whether to stop."""
MAX_DEATHS = 3
"""Processes that may die with a score before it is given up."""


class BackgroundScorer:
    """Scores one policy at a time while this process does something else.

    A score depends on policy and seed alone: if its process dies, another one repeats it. If no process can
    make the environments (their id was registered in this one alone) or be sent the policy, `result` scores
    in this process.
    """

    def __init__(self, make_scorer: Callable[[], QuickScorer], *, here: bool = False) -> None:
        """Starts no process before the first score.

        Args:
            make_scorer: makes what scores; pickled by cloudpickle.
            here: whether `result` scores in this process: for environments that are shared out over
                processes already.
        """
        self._make = make_scorer
        self._is_beside = not here
        self._here: QuickScorer | None = None
        self._worker: Worker | None = None
        self._policy: nn.Module | None = None
        self._seed = self._number = self._deaths = 0
        self._official = False
        self._answer: Episodes | PlayError | None = None

    def start(self, policy: nn.Module, seed: int, *, official: bool = False) -> None:
        """Begins the score of a policy as it is now; one that is under way is given up.

        Args:
            policy: on any device; a copy on the CPU is scored.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
            official: whether the official environment itself must be played in; see `QuickScorer`.
        """
        self._policy, self._seed, self._official = copy_module(policy).cpu(), seed, official
        self._number += 1
        self._deaths, self._answer = 0, None
        if self._is_beside:
            self._send()

    @property
    def is_beside(self) -> bool:
        """Whether another process scores, or else this one, in `result`."""
        return self._is_beside

    def _send(self) -> None:
        try:
            request = cloudpickle.dumps(self._policy)
            self._worker = self._worker or Worker(_serve, cloudpickle.dumps(self._make))
        except Exception:  # whatever pickling a user's class or keyword arguments may raise
            self._is_beside = False
            return
        self._worker.send((self._number, request, self._seed, self._official))

    @property
    def is_ready(self) -> bool:
        """Whether `result` has an answer, or would have to play the episodes in this process."""
        while self._answer is None and self._worker is not None and self._worker.connection.poll():
            self._receive(never)
        return self._answer is not None or not self._is_beside

    def result(self, should_stop: Callable[[], bool] = never) -> Episodes:
        """Waits for the score that was begun, and returns its episodes.

        Args:
            should_stop: asked several times per second.

        Raises:
            PlayError: if the policy raised, the environments cannot be made in this process either, or
                process after process died.
            PlayStoppedError: if `should_stop` said so; `result` may be called again.
        """
        assert self._policy is not None, "start comes first"
        while self._answer is None:
            if self._is_beside:
                self._receive(should_stop)
            else:
                self._here = self._here or self._make()
                self._answer = self._here.score(
                    self._policy, seed=self._seed, official=self._official, should_stop=should_stop
                )
        if isinstance(self._answer, PlayError):
            raise self._answer
        return self._answer

    def _receive(self, should_stop: Callable[[], bool]) -> None:
        """Waits for a message of the process; one that died is replaced."""
        assert self._worker is not None
        try:
            while not self._worker.connection.poll(SECONDS_BETWEEN_LOOKS):
                if should_stop():
                    raise PlayStoppedError
            number, answer = self._worker.receive()
        except (WorkerDiedError, OSError) as error:
            self._end_worker()
            if should_stop():  # perhaps the same signal ended the process
                self._send()
                raise PlayStoppedError from None
            self._deaths += 1
            if self._deaths < MAX_DEATHS:
                self._send()
            else:
                self._answer = PlayError(
                    f"{MAX_DEATHS} processes died while they scored the center (the last: {error})"
                )
            return
        if number is None:
            self._end_worker()
            self._is_beside = False
        elif number == self._number:  # not of a score that was given up
            is_score = isinstance(answer, Episodes)
            self._answer = answer if is_score else PlayError(f"the center cannot be scored: {answer}")

    def _end_worker(self) -> None:
        if self._worker is not None:
            end_workers([self._worker])  # it then gives up what it does
            self._worker = None

    def close(self) -> None:
        """Gives up a score that is under way, closes the environments and ends their process."""
        self._end_worker()
        if self._here is not None:
            self._here.close()


def _serve(connection: Connection, make: bytes) -> None:
    """Scores policies until the connection is closed; a number of None says that it cannot."""
    use_one_thread()
    try:
        scorer: QuickScorer = cloudpickle.loads(make)()
    except Exception as error:  # whatever the import of a user's module may raise
        connection.send((None, error_text(error)))
        return
    with contextlib.closing(scorer):
        while True:
            number, policy, seed, official = connection.recv()
            try:
                answer: Episodes | str = scorer.score(
                    cloudpickle.loads(policy), seed=seed, official=official, should_stop=connection.poll
                )
            except PlayStoppedError:
                continue
            except ScorerNotMadeError as error:
                connection.send((None, str(error)))
                return
            except Exception as error:  # whatever a user's policy may raise
                answer = error_text(error)
            connection.send((number, answer))
