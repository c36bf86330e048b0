"""Gymnasium environments distributed over processes, with inputs and outputs in shared memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from es_flipout.envs.guarded_env import MakeEnv
from es_flipout.envs.local_envs import EnvArrays, LocalEnvs
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.processes import SharedMemory, Worker, WorkerDiedError, end_workers

Shapes = Sequence[tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass
class _Share:
    """The envs of one process.

    Attributes:
        envs: which of the N they are.
        worker: the process.
        failure: why the process could not make them; None if it could.
    """

    envs: slice
    worker: Worker
    failure: str | None = None


class EnvProcesses:
    """N envs in W processes, each with a block of them. A process that dies is replaced.

    Attributes:
        arrays: inputs and outputs of all envs.
    """

    def __init__(
        self,
        make: MakeEnv,
        num_envs: int,
        observation_space: spaces.Box,
        action_space: gym.Space[Any],
        num_processes: int,
        info: Sequence[str] = (),
    ) -> None:
        """Starts the processes.

        Args:
            make: makes one environment; must be picklable by cloudpickle.
            num_envs: number of envs N.
            observation_space: of one env.
            action_space: of one env.
            num_processes: number of processes W, at most N.
            info: names of the info entries that are kept.

        Raises:
            RuntimeError: if an environment cannot be made, or a process dies before.
        """
        self._make, self._info = cloudpickle.dumps(make), list(info)
        self._shapes = EnvArrays.shapes(num_envs, observation_space, action_space, len(self._info))
        self._memory = SharedMemory([int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._shapes])
        self.arrays = _arrays(self._memory, self._shapes)
        bounds = np.linspace(0, num_envs, num_processes + 1).astype(int).tolist()
        self._shares: list[_Share] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for envs in itertools.starmap(slice, itertools.pairwise(bounds)):
                self._shares.append(_Share(envs, self._start(envs)))
            for share in self._shares:
                failure = self._receive(share)
                if failure is not None:
                    raise RuntimeError(f"an environment could not be made: {failure}")
            stack.pop_all()

    def _start(self, envs: slice) -> Worker:
        return Worker(_serve, self._make, self._memory, self._shapes, envs, self._info)

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets envs, each with its seed; returns what went wrong, by env."""
        return self._call("reset", seeds)

    def step(self, ids: Sequence[int]) -> dict[int, str]:
        """Steps envs by their actions; returns what went wrong, by env."""
        return self._call("step", dict.fromkeys(ids))

    def _call(self, method: str, arguments: Mapping[int, Any]) -> dict[int, str]:
        """Has every process do its share; if one dies, all of its envs have failed."""
        asked: list[_Share] = []
        for share in self._shares:
            first = share.envs.start
            own = {i - first: arguments[i] for i in range(first, share.envs.stop) if i in arguments}
            if own:
                asked.append(share)
                share.worker.send((method, own))
        failures: dict[int, str] = {}
        died: list[_Share] = []
        for share in asked:
            answer = self._receive(share)
            if isinstance(answer, str):
                failures |= dict.fromkeys(range(share.envs.start, share.envs.stop), answer)
                died.append(share)
            else:
                failures |= {share.envs.start + i: failure for i, failure in answer.items()}
        for share in died:
            self._replace(share)
        return failures

    @staticmethod
    def _receive(share: _Share) -> Any:
        """Returns a process's answer, or if it died, a line that says so."""
        try:
            return share.worker.receive()
        except WorkerDiedError as error:
            return share.failure or str(error)

    def _replace(self, share: _Share) -> None:
        """Starts a process anew; if its envs cannot be made, the next call fails, and it is tried again."""
        end_workers([share.worker])
        share.worker = self._start(share.envs)
        share.failure = self._receive(share)

    def close(self) -> None:
        """Closes the environments and ends the processes."""
        end_workers([share.worker for share in self._shares])
        self._shares = []


def _arrays(memory: SharedMemory, shapes: Shapes) -> EnvArrays:
    return EnvArrays(
        *(
            np.frombuffer(block, dtype).reshape(shape)
            for block, (shape, dtype) in zip(memory.blocks(), shapes, strict=True)
        )
    )


def _serve(
    connection: Connection,
    make: bytes,
    memory: SharedMemory,
    shapes: Shapes,
    envs: slice,
    info: Sequence[str],
) -> None:
    """What a process does: its share of every call, until the connection is closed."""
    try:
        local = LocalEnvs(cloudpickle.loads(make), _arrays(memory, shapes).part(envs), info)
    except FOREIGN as error:
        connection.send(error_text(error))
        return
    connection.send(None)
    with contextlib.closing(local):
        while True:
            method, share = connection.recv()
            connection.send(local.reset(share) if method == "reset" else local.step(list(share)))
