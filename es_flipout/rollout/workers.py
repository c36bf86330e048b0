"""Worker processes that evaluate populations: shared by all evaluators that have any.

A worker gets the center through memory that all share, and indices of members; it draws their noise again
from its seed, plays their episodes, and sends back returns, lengths and the moments of what was observed.

Work is handed out as workers become free. What a worker that dies had in hand is evaluated again by others;
since a return depends on nothing but the member and the seed, this changes no result.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor, nn

from es_flipout.population import Population, trained_parameters
from es_flipout.processes import end_processes, start_process
from es_flipout.rollout.episodes import Evaluation, EvaluationStoppedError, Results
from es_flipout.rollout.pending_work import PendingWork
from es_flipout.rollout.worker_main import Chunk, Player, SharedTensors, serve

MAX_DEATHS_IN_A_ROW = 5
"""How many workers may die for each that there is, with no member evaluated in between, before we give up."""
POLL_SECONDS = 0.1
"""How long a request to stop may go unnoticed while nothing else happens."""


class WorkerError(RuntimeError):
    """The workers cannot do their work."""


@dataclass
class _Worker:
    """A process, and what it has been given to do."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    chunks: deque[list[int]] = field(default_factory=deque)  # of members, in the order of the answers


class WorkerPool:
    """Evaluates populations of one policy in worker processes, which live until `close`."""

    def __init__(
        self,
        policy: nn.Module,
        make_player: Callable[[], Player],
        num_workers: int,
        *,
        guided: bool,
    ) -> None:
        """Starts the workers.

        Args:
            policy: the policy whose populations are to be evaluated, on the CPU. Workers get a copy; of later
                changes they see those of parameters and buffers.
            make_player: called once in every worker; pickled by cloudpickle.
            num_workers: how many processes.
            guided: whether members are handed out in chunks that get smaller towards the end, so that all
                workers end at about the same time; each gets its share in one piece if not.

        Raises:
            ValueError: if the policy is not all on the CPU, its state is not all tensors, or there is to
                be no worker.
            WorkerError: if a worker cannot start; the message says why.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers must be >= 1, got {num_workers}")
        state = policy.state_dict()
        if not all(isinstance(value, Tensor) and value.device.type == "cpu" for value in state.values()):
            raise ValueError("worker processes need a policy whose state is tensors on the CPU")
        shared = SharedTensors(state)
        self._center = shared.tensors()
        self._trained = list(trained_parameters(policy))
        try:
            self._arguments = cloudpickle.dumps(policy), cloudpickle.dumps(make_player), shared
        except Exception as error:  # whatever a user's class may raise
            raise ValueError(
                f"worker processes need a policy that can be pickled: {type(error).__name__}: {error}"
            ) from error
        self._guided = guided
        self._generation = 0
        self._deaths_in_a_row = 0
        self._workers: list[_Worker] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._workers = [self._start() for _ in range(num_workers)]
            for worker in self._workers:
                self._observation_size = _greet(worker)
            stack.pop_all()

    @property
    def num_workers(self) -> int:
        """How many processes there are."""
        return len(self._workers)

    def evaluate(
        self,
        population: Population,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]],
        *,
        episode_limit: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Plays the episodes of every member.

        Args:
            population: of the policy that the workers have; drawn by a strategy.
            reset_seeds: seed of each episode, [P, E], or [P] for one episode a member.
            episode_limit: env steps after which an episode is cut off; None for the environment's own limit.
            should_stop: asked several times a second.

        Raises:
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if there are not as many seeds for each member, the population is of another kind, or
                the evaluator is closed.
            WorkerError: if workers die one after the other, or the policy raises in one of them.
        """
        if not self._workers:
            raise ValueError("the evaluator is closed")
        results = Results.of(reset_seeds, population.size, self._observation_size)
        work = PendingWork(
            results,
            self._announce(population, episode_limit),
            len(self._workers),
            self._guided,
        )
        try:
            self._revive()
            while not work.done:
                if should_stop():
                    raise EvaluationStoppedError
                for worker in self._workers:
                    self._hand_out(worker, work)
                self._receive(work, should_stop)
        except BaseException:
            # What is under way is of no use any more, and may be long; `_revive` replaces the workers.
            for worker in self._workers:
                if worker.chunks:
                    worker.process.kill()
            raise
        return results.evaluation(work.slot_steps)

    def _announce(self, population: Population, episode_limit: int | None) -> Chunk:
        """Writes the center to the shared memory, and returns what every chunk of its members says."""
        state = population.policy.state_dict()
        if _layout(state) != _layout(self._center):
            raise ValueError("the population is not of the policy that the workers have")
        if population.trained != self._trained:
            raise ValueError("the population's policy trains other parameters than the workers' policy")
        if population.origin is None:
            raise ValueError(
                "the population's noise cannot be drawn again elsewhere: its origin is not known"
            )
        for name, value in self._center.items():
            value.copy_(state[name])
        self._generation += 1
        origin = cloudpickle.dumps(population.origin)
        return Chunk(
            self._generation, origin, population.sigma, episode_limit, [], np.empty((0, 0), np.int64)
        )

    def _start(self) -> _Worker:
        return _Worker(*start_process(serve, *self._arguments))

    def _revive(self) -> None:
        """Replaces workers that died, or were killed, since the last evaluation."""
        for index, worker in enumerate(self._workers):
            if worker.chunks or not worker.process.is_alive():
                worker.connection.close()
                self._workers[index] = self._start()
        self._deaths_in_a_row = 0

    @staticmethod
    def _hand_out(worker: _Worker, work: PendingWork) -> None:
        """Gives a worker a chunk, and as long as there will be others, another one in advance."""
        while worker.ready and len(worker.chunks) < (2 if work.may_go_ahead else 1):
            members = work.next_members()
            if not members:
                break
            worker.chunks.append(members)
            with contextlib.suppress(OSError):  # that it died shows when it does not answer
                worker.connection.send(work.chunk(members))

    def _receive(self, work: PendingWork, should_stop: Callable[[], bool]) -> None:
        """Waits for messages of workers, and sees to them.

        Raises:
            EvaluationStoppedError: if a worker has died, and this process was asked to stop, perhaps by the
                same signal.
        """
        ready = wait([worker.connection for worker in self._workers], timeout=POLL_SECONDS)
        for index, worker in enumerate(self._workers):
            if worker.connection not in ready:
                continue
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                if should_stop():
                    raise EvaluationStoppedError from None
                self._workers[index] = self._replace(worker, work)
                continue
            if isinstance(message, str):
                raise _worker_error(message)
            if worker.ready:
                work.record(worker.chunks.popleft(), message)
                self._deaths_in_a_row = 0
            worker.ready = True

    def _replace(self, worker: _Worker, work: PendingWork) -> _Worker:
        """Starts another worker for one that died; what that had in hand waits again."""
        worker.connection.close()
        worker.process.join()
        reason = f"the worker process died (exit code {worker.process.exitcode})"
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW * len(self._workers):
            raise WorkerError(f"{self._deaths_in_a_row} times in a row {reason}")
        if worker.chunks:
            work.lose(worker.chunks.popleft(), reason)
        for members in reversed(worker.chunks):
            work.give_back(members)
        return self._start()

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            if worker.chunks:
                worker.process.kill()
            with contextlib.suppress(OSError):
                worker.connection.send(None)
            worker.connection.close()
        end_processes([worker.process for worker in self._workers])
        self._workers = []


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (value.shape, value.dtype, value.device) for name, value in state.items()}


def _greet(worker: _Worker) -> int | None:
    """Waits until a worker is ready; returns its player's observation size."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        message = f"the worker process died (exit code {worker.process.exitcode})"
    if isinstance(message, str):
        raise _worker_error(message)
    worker.ready = True
    observation_size: int | None = message[0]
    return observation_size


def _worker_error(message: str) -> WorkerError:
    """Returns the error for what a worker said went wrong: a line, or a traceback that ends with one."""
    error = WorkerError(message.strip().splitlines()[-1])
    error.add_note(message)
    return error
