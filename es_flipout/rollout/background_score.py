"""Scores the center beside training, in a process of its own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import cloudpickle  # type: ignore[import-untyped]
from torch import nn

from es_flipout.processes import end_processes, start_process, use_one_thread
from es_flipout.rollout.episodes import EvaluationStoppedError
from es_flipout.rollout.score import OfficialEvaluator, OfficialScore
from es_flipout.rollout.workers import WorkerError
from es_flipout.run.config import EnvConfig

SECONDS_BETWEEN_LOOKS = 0.1
"""How long `BackgroundJudge.result` waits before it asks again whether to stop."""
MAX_DEATHS = 3
"""Processes that may die with a score before it is given up."""


class BackgroundJudge:
    """Scores one policy at a time, as an `OfficialEvaluator` does, while this process does something else.

    A score depends on policy and seed alone: if its process dies, another one repeats it. If no process can
    make the environments (their id was registered in this one alone) or be sent the policy, `result` scores
    in this process.
    """

    def __init__(self, env: EnvConfig, episodes: int, *, processes: int = 0) -> None:
        """Makes one environment to see that it can be made; nothing else is begun before the first score.

        Args:
            env: the environment's id, keyword arguments and wrappers.
            episodes: number of episodes per score.
            processes: if not 0, `result` scores in this process, its environments shared out over so many:
                for environments that are slow, or that their process does not survive.

        Raises:
            TypeError: if the environment does not know a keyword argument.
            ValueError: if it cannot be made for another reason.
        """
        OfficialEvaluator(env, 1).close()
        self._make = partial(OfficialEvaluator, env, episodes, processes=processes)
        self._is_beside = processes == 0
        self._here: OfficialEvaluator | None = None
        self._worker: tuple[BaseProcess, Connection] | None = None
        self._policy: nn.Module | None = None
        self._seed = self._number = self._deaths = 0
        self._answer: OfficialScore | WorkerError | None = None

    def start(self, policy: nn.Module, seed: int) -> None:
        """Begins the score of a policy as it is now; one that is under way is given up.

        Args:
            policy: on any device; a copy on the CPU is scored.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
        """
        self._policy, self._seed = copy.deepcopy(policy).cpu(), seed
        self._number += 1
        self._deaths, self._answer = 0, None
        if self._is_beside:
            self._send()

    def _send(self) -> None:
        try:
            request = cloudpickle.dumps(self._policy)
            self._worker = self._worker or start_process(_serve, cloudpickle.dumps(self._make))
        except Exception:  # whatever pickling a user's class or keyword arguments may raise
            self._is_beside = False
            return
        with contextlib.suppress(OSError):  # that it died shows when it does not answer
            self._worker[1].send((self._number, request, self._seed))

    def result(self, should_stop: Callable[[], bool] = lambda: False) -> OfficialScore:
        """Waits for the score that was begun, and returns it.

        Args:
            should_stop: asked several times a second.

        Raises:
            EvaluationStoppedError: if `should_stop` said so; `result` may be called again.
            WorkerError: if the policy raised, or process after process died.
        """
        assert self._policy is not None, "start comes first"
        while self._answer is None:
            if self._is_beside:
                self._receive(should_stop)
            else:
                self._here = self._here or self._make()
                self._answer = self._here.score(self._policy, seed=self._seed, should_stop=should_stop)
        if isinstance(self._answer, WorkerError):
            raise self._answer
        return self._answer

    def _receive(self, should_stop: Callable[[], bool]) -> None:
        """Waits for a message of the process; one that died is replaced."""
        assert self._worker is not None
        process, connection = self._worker
        try:
            while not connection.poll(SECONDS_BETWEEN_LOOKS):
                if should_stop():
                    raise EvaluationStoppedError
            number, answer = connection.recv()
        except (EOFError, OSError):
            self._end_worker()
            if should_stop():  # perhaps the same signal ended the process
                self._send()
                raise EvaluationStoppedError from None
            self._deaths += 1
            if self._deaths < MAX_DEATHS:
                self._send()
            else:
                self._answer = WorkerError(
                    f"{MAX_DEATHS} processes died while they scored the center "
                    f"(exit code of the last: {process.exitcode})"
                )
            return
        if number is None:
            self._end_worker()
            self._is_beside = False
        elif number == self._number:  # not of a score that was given up
            is_score = isinstance(answer, OfficialScore)
            self._answer = answer if is_score else WorkerError(f"the center cannot be scored: {answer}")

    def _end_worker(self) -> None:
        if self._worker is None:
            return
        process, connection = self._worker
        self._worker = None
        connection.close()  # it then gives up what it does, and ends
        end_processes([process])

    def close(self) -> None:
        """Gives up a score that is under way, closes the environments and ends their process."""
        self._end_worker()
        if self._here is not None:
            self._here.close()


def _serve(connection: Connection, make: bytes) -> None:
    """Scores policies until the connection is closed; a number of None says that it cannot."""
    use_one_thread()
    try:
        judge: OfficialEvaluator = cloudpickle.loads(make)()
    except Exception as error:  # whatever a user's environment may raise
        connection.send((None, f"{type(error).__name__}: {error}"))
        return
    with contextlib.closing(judge):
        while True:
            number, policy, seed = connection.recv()
            try:
                answer: OfficialScore | str = judge.score(
                    cloudpickle.loads(policy), seed=seed, should_stop=connection.poll
                )
            except EvaluationStoppedError:
                continue
            except Exception as error:  # whatever a user's policy may raise
                answer = f"{type(error).__name__}: {error}"
            connection.send((number, answer))
