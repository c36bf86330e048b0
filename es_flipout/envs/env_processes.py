"""Gymnasium environments shared out over processes, with shared arrays for all that goes in and out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from es_flipout.envs.env_rows import EnvRows, MakeEnv, RowArrays
from es_flipout.processes import CONTEXT, end_processes, start_process


@dataclass
class _Worker:
    """One process, and the rows that it steps."""

    rows: slice
    process: BaseProcess
    connection: Connection
    failure: str | None = None  # why its environments cannot be made


class EnvProcesses:
    """N environments in W processes, each with a block of rows. A process that dies is replaced."""

    def __init__(
        self,
        make: MakeEnv,
        num_envs: int,
        observation_space: spaces.Box,
        action_space: gym.Space[Any],
        num_processes: int,
    ) -> None:
        """Starts the processes.

        Args:
            make: makes one environment; must be picklable by cloudpickle.
            num_envs: number of rows N.
            observation_space: of one environment.
            action_space: of one environment.
            num_processes: number of processes W, at most N.

        Raises:
            RuntimeError: if a process dies before its environments are made.
        """
        self._make = cloudpickle.dumps(make)
        self._shapes = RowArrays.shapes(num_envs, observation_space, action_space)
        self._memory = [
            CONTEXT.RawArray("b", max(int(np.prod(shape)) * dtype.itemsize, 1))
            for shape, dtype in self._shapes
        ]
        self.arrays = _arrays(self._memory, self._shapes)
        bounds = np.linspace(0, num_envs, num_processes + 1).astype(int).tolist()
        self._workers: list[_Worker] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for first, last in itertools.pairwise(bounds):
                self._workers.append(self._start(slice(first, last)))
            for worker in self._workers:
                failure = self._receive(worker)
                if failure is not None:
                    raise RuntimeError(f"an environment could not be made: {failure}")
            stack.pop_all()

    def _start(self, rows: slice) -> _Worker:
        return _Worker(rows, *start_process(_serve, self._make, self._memory, self._shapes, rows))

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets rows, each with its seed; returns what went wrong, by row."""
        return self._call("reset", seeds)

    def step(self, rows: Sequence[int]) -> dict[int, str]:
        """Steps rows by their actions; returns what went wrong, by row."""
        return self._call("step", dict.fromkeys(rows))

    def _call(self, method: str, rows: Mapping[int, Any]) -> dict[int, str]:
        """Has every process do its share; the rows of one that died have all failed."""
        asked: list[_Worker] = []
        for worker in self._workers:
            first = worker.rows.start
            share = {row - first: rows[row] for row in range(first, worker.rows.stop) if row in rows}
            if share:
                asked.append(worker)
                with contextlib.suppress(OSError):  # that it died shows when it does not answer
                    worker.connection.send((method, share))
        failures: dict[int, str] = {}
        died: list[_Worker] = []
        for worker in asked:
            answer = self._receive(worker)
            if isinstance(answer, str):
                failures |= dict.fromkeys(range(worker.rows.start, worker.rows.stop), answer)
                died.append(worker)
            else:
                failures |= {row + worker.rows.start: failure for row, failure in answer.items()}
        for worker in died:
            self._replace(worker)
        return failures

    @staticmethod
    def _receive(worker: _Worker) -> Any:
        """Returns a process's answer, or if it died, a line that says so."""
        try:
            return worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            return worker.failure or (
                f"the process of the environment died (exit code {worker.process.exitcode})"
            )

    def _replace(self, worker: _Worker) -> None:
        """Starts a process anew; if it cannot, that shows, and is tried again, at its next call."""
        worker.connection.close()
        new = self._start(worker.rows)
        worker.process, worker.connection = new.process, new.connection
        worker.failure = self._receive(worker)
        if worker.failure is not None:
            worker.connection.close()

    def close(self) -> None:
        """Closes the environments and ends the processes."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
            with contextlib.suppress(OSError):
                worker.connection.close()
        end_processes([worker.process for worker in self._workers])
        self._workers = []


def _arrays(memory: Sequence[Any], shapes: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> RowArrays:
    return RowArrays(
        *(
            np.frombuffer(block, dtype, int(np.prod(shape))).reshape(shape)
            for block, (shape, dtype) in zip(memory, shapes, strict=True)
        )
    )


def _serve(
    connection: Connection,
    make: bytes,
    memory: Sequence[Any],
    shapes: Sequence[tuple[tuple[int, ...], np.dtype[Any]]],
    rows: slice,
) -> None:
    """What a process does: its share of every call, until it is told to end."""
    try:
        envs = EnvRows(cloudpickle.loads(make), _arrays(memory, shapes).part(rows))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    with contextlib.closing(envs):
        while (request := connection.recv()) is not None:
            method, share = request
            connection.send(envs.reset(share) if method == "reset" else envs.step(list(share)))
