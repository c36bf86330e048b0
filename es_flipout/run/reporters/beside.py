"""Reporters in processes of their own: they cost a run no time, and nothing that they do ends it.

A call over a network takes tens of milliseconds, a server that is gone minutes, and a library may print, lock
or hang as it likes. A thread would share the interpreter's lock with the training and could not be ended. A
process takes what it is sent at once, works it off as fast as it can, and is killed if it does not end.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import cloudpickle  # type: ignore[import-untyped]
from typing_extensions import override

from es_flipout.error_text import FOREIGN
from es_flipout.processes import Worker, WorkerDiedError, end_workers, use_one_thread
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter
from es_flipout.run.reporters.guarded import Announce, failure_line, reason_of

MOST_WAITING = 1000
"""Generations that may wait for a reporter."""
MOST_WITH_HISTOGRAMS = 16
"""Generations that may wait with their histograms, which may be as large as the policy."""
SECONDS_TO_CLOSE = 60.0
"""How long the end of a run waits for a reporter."""
SECONDS_TO_SEND = 10
"""How long a process that receives reports may take to go on receiving."""


class ReporterBeside(Reporter):
    """Reports from a process of its own; once that fails, it says so in one line and is off."""

    def __init__(self, name: str, make: Callable[[], Reporter], announce: Announce) -> None:
        """Starts the process, and waits for nothing.

        Args:
            name: as the configuration has it.
            make: makes the reporter, in that process; pickled by cloudpickle.
            announce: is told if it fails.
        """
        self._name, self._announce = name, announce
        self._num_waiting = 0
        self._is_receiving = self._is_closed = False  # as far as the process has said so
        self._held: list[object] = []  # what is to be sent once it receives
        self._worker: Worker | None = None
        try:
            self._worker = Worker(_serve, cloudpickle.dumps(make))
            _limit_sending(self._worker.connection)
        except FOREIGN as error:
            self._turn_off(reason_of(error))

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        self._listen(0.0)
        if self._worker is None:
            return
        if self._num_waiting >= MOST_WAITING:
            self._turn_off(f"{self._num_waiting} generations wait for it")
        shown = histograms if self._num_waiting < MOST_WITH_HISTOGRAMS else {}
        self._num_waiting += 1
        self._send((metrics, shown, progress))

    def _send(self, message: object) -> None:
        self._held.append(message)
        self._send_held()

    def _send_held(self) -> None:
        while self._worker is not None and self._is_receiving and self._held:
            try:
                self._worker.connection.send(self._held.pop(0))
            except BlockingIOError:
                self._turn_off("its process does not receive anything any more")
            except OSError:
                self._listen(SECONDS_TO_SEND)  # it may have said why it ended

    def _listen(self, seconds: float) -> None:
        """Takes what the process has said, and waits for more if there is nothing."""
        try:
            while self._worker is not None and self._worker.connection.poll(seconds):
                answer = self._worker.receive()
                seconds = 0.0
                if isinstance(answer, str):
                    self._turn_off(answer)
                elif answer is None:
                    self._is_closed = True
                    return
                else:
                    self._is_receiving = True
                    self._num_waiting -= answer
                    self._send_held()
        except (WorkerDiedError, OSError) as error:
            self._turn_off(str(error).replace("the worker process", "its process"))

    def _turn_off(self, reason: str) -> None:
        self._announce(failure_line(self._name, reason))
        self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            end_workers([worker])

    @override
    def close(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_CLOSE
        try:
            while self._worker is not None and not self._is_receiving:
                self._listen_until(deadline)
            self._send(None)
            while self._worker is not None and not self._is_closed:
                self._listen_until(deadline)
        finally:
            self._end()

    def _listen_until(self, deadline: float) -> None:
        if (left := deadline - time.monotonic()) > 0:
            self._listen(left)
        else:
            self._turn_off(f"it has not ended within {SECONDS_TO_CLOSE:g} seconds")


def _limit_sending(connection: Connection) -> None:
    """Has a send fail that takes too long, instead of waiting for a process that never reads."""
    seconds = struct.pack("ll", SECONDS_TO_SEND, 0)
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)


def _serve(connection: Connection, make: bytes) -> None:
    """Takes reports until None comes; says how many more are done, or in a string what went wrong."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run that is told to stop closes its reporters
    use_one_thread()
    inbox: queue.SimpleQueue[tuple[GenerationMetrics, Histograms, float] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        connection.send(0)
        reporter: Reporter = cloudpickle.loads(make)()
        while (taken := inbox.get()) is not None:
            reporter.report(*taken)
            if inbox.empty():
                reporter.flush()
            connection.send(1)
        reporter.close()
        connection.send(None)
    except FOREIGN as error:
        connection.send(reason_of(error))


def _receive(
    connection: Connection, inbox: queue.SimpleQueue[tuple[GenerationMetrics, Histograms, float] | None]
) -> None:
    """Receives reports while others are worked off, so that whoever sends them never waits."""
    message: tuple[GenerationMetrics, Histograms, float] | None
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = None
        inbox.put(message)
        if message is None:
            return
