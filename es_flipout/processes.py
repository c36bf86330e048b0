"""Worker processes: how they start, and how they end with this process."""

from __future__ import annotations

import contextlib
import math
import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import mujoco
import torch
from threadpoolctl import threadpool_limits

CONTEXT = mp.get_context("forkserver")
"""A fork of this process could inherit locked locks from its threads; a spawn would import all anew."""
CONTEXT.set_forkserver_preload(["es_flipout.run.trainer", "es_flipout.compilation"])  # all that any needs

_MAIN_MODULE = threading.Lock()
"""Held while `sys.modules["__main__"]` is another one."""

Serve = Callable[..., None]
"""What a process does: called with its end of the connection, and further arguments."""


class WorkerDiedError(Exception):
    """A worker process has died; the message says how."""


class Worker:
    """A process that works for this one, and this end of its connection.

    A process that died is noticed by `receive`, never by `send`.

    Attributes:
        process: the process.
        connection: this end, for `multiprocessing.connection.wait`.
    """

    def __init__(self, serve: Serve, *args: Any) -> None:
        """Starts the process.

        Args:
            serve: a function of a module, called there with the other end of the connection, then `args`.
            args: what can be pickled, or is a `SharedMemory`. Whatever may be of the user's main module must
                be bytes, pickled by cloudpickle.
        """
        self.connection, theirs = CONTEXT.Pipe()
        self.process: BaseProcess = CONTEXT.Process(target=_run, args=(serve, theirs, *args), daemon=True)
        with _nameless_main(), _interrupts_held():
            self.process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Sends something that can be pickled; a process that died gets nothing."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Waits for a message, and returns it.

        Raises:
            WorkerDiedError: if the process has died.
        """
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise WorkerDiedError(f"the worker process died (exit code {code})") from None

    def kill(self) -> None:
        """Kills the process; `receive` then says that it died."""
        self.process.kill()


def end_workers(workers: Sequence[Worker], *, patience: float = 5.0) -> None:
    """Closes connections, at which a worker ends, and kills those that take `patience` seconds longer."""
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(timeout=patience)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


class SharedMemory:
    """Blocks of memory that this process shares with the workers that it is handed to."""

    ALIGNMENT = 64
    """Bytes; each block starts at a multiple of it."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Makes zeroed blocks of so many bytes."""
        self._sizes = list(sizes)
        self._memory = CONTEXT.RawArray("b", max(sum(map(self._padded, self._sizes)), 1))

    def _padded(self, size: int) -> int:
        return math.ceil(size / self.ALIGNMENT) * self.ALIGNMENT

    def blocks(self) -> list[memoryview]:
        """Returns the blocks, writable, for `numpy.frombuffer` or `torch.frombuffer`."""
        view, blocks, offset = memoryview(self._memory).cast("B"), [], 0
        for size in self._sizes:
            blocks.append(view[offset : offset + size])
            offset += self._padded(size)
        return blocks


def use_one_thread() -> None:
    """Keeps a process to one thread of torch's and of BLAS, for other processes are on the other cores."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def prepare_processes() -> None:
    """Starts the fork server without waiting for it, so that the first process starts faster."""
    with _interrupts_held():
        forkserver.ensure_running()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keeps Ctrl-C away from a fork server that starts, which would not survive it: it inherits this mask."""
    resource_tracker.ensure_running()  # which ends with SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _nameless_main() -> Iterator[None]:
    """Keeps a process that starts from running the user's script once more.

    multiprocessing would have it imported, for what is pickled by reference; nothing is here. Hence a script
    needs no `if __name__ == "__main__"`.
    """
    with _MAIN_MODULE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _run(serve: Serve, connection: Connection, *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    mujoco.set_mju_user_warning(lambda message: None)  # failures are counted and reported as such
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has closed its end
        serve(connection, *args)


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
