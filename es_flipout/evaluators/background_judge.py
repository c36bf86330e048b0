"""Scores the center beside training: in a thread, with the official environments in other processes."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from torch import nn

from es_flipout.config import EnvConfig
from es_flipout.evaluators.official import OfficialEvaluator, OfficialScore
from es_flipout.evaluators.results import EvaluationStoppedError

SECONDS_BETWEEN_LOOKS = 0.1
"""How long `BackgroundJudge.result` waits before it asks again whether to stop."""
PATIENCE = 5.0
"""Seconds that a score has to notice that it is no longer wanted."""


class BackgroundJudge:
    """Scores one policy at a time while this process does something else.

    The scores are those of an `OfficialEvaluator`. Environments that no other process can make (their id was
    registered in this one alone) are stepped in this process, and only when `result` is called, since other
    people's environments need not bear two threads.
    """

    def __init__(self, env: EnvConfig, episodes: int, *, processes: int) -> None:
        """Makes one environment to see that it can be made; the others follow with the first score.

        Args:
            env: the environment's id, keyword arguments and wrappers.
            episodes: number of episodes per score.
            processes: how many processes the environments are shared out over, at least 1.

        Raises:
            ValueError: if the environment cannot be made.
        """
        OfficialEvaluator(env, 1).close()
        self._env, self._episodes, self._processes = env, episodes, processes
        self._judge: OfficialEvaluator | None = None
        self._is_beside = False
        self._score: Callable[[Callable[[], bool]], OfficialScore] | None = None
        self._future: Future[OfficialScore] = Future()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self, policy: nn.Module, seed: int) -> None:
        """Begins the score of a policy as it is now; the one before must have been waited for.

        Args:
            policy: on any device; a copy on the CPU is scored.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
        """
        judge = self._judge or self._open()
        scored = copy.deepcopy(policy).cpu()
        self._score = lambda should_stop: judge.score(scored, seed=seed, should_stop=should_stop)
        if self._is_beside:
            self._future = Future()
            # A daemon: a program that ends does not wait for an environment that hangs.
            self._thread = threading.Thread(target=self._run, args=(self._score, self._future), daemon=True)
            self._thread.start()

    def _open(self) -> OfficialEvaluator:
        try:
            self._judge = OfficialEvaluator(self._env, self._episodes, processes=self._processes)
            self._is_beside = True
        except (RuntimeError, TypeError, pickle.PicklingError):
            self._judge = OfficialEvaluator(self._env, self._episodes)
        return self._judge

    def _run(
        self, score: Callable[[Callable[[], bool]], OfficialScore], future: Future[OfficialScore]
    ) -> None:
        try:
            future.set_result(score(self._closing.is_set))
        except BaseException as error:
            future.set_exception(error)

    def result(self, should_stop: Callable[[], bool] = lambda: False) -> OfficialScore:
        """Waits for the score that was begun, and returns it.

        Args:
            should_stop: asked several times a second.

        Raises:
            EvaluationStoppedError: if `should_stop` said so; `result` may be called again.
        """
        assert self._score is not None, "start comes first"
        if not self._is_beside:
            return self._score(should_stop)
        while not wait([self._future], SECONDS_BETWEEN_LOOKS).done:
            if should_stop():
                raise EvaluationStoppedError
        return self._future.result()

    def close(self) -> None:
        """Gives up a score that is under way, closes the environments and ends their processes."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if self._judge is not None:
            with contextlib.suppress(OSError):
                self._judge.close()
