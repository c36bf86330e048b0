"""Worker and SharedMemory: what a process gets, and how its end is told."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from es_flipout.processes import SharedMemory, Worker, WorkerDiedError, end_workers


def double(connection, memory):
    """Doubles the first block of numbers whenever it is asked; dies of a negative one."""
    numbers = np.frombuffer(memory.blocks()[0], np.float32)
    while (bound := connection.recv()) is not None:
        if bound < 0:
            os.kill(os.getpid(), signal.SIGTERM)
        numbers *= 2
        connection.send(f"below {bound}: {bool((numbers < bound).all())}")


def test_memory_is_shared_with_a_worker_which_ends_when_it_is_told():
    memory = SharedMemory([12, 0, 5])
    first, none, last = memory.blocks()
    assert [len(block) for block in (first, none, last)] == [12, 0, 5]
    numbers = np.frombuffer(first, np.float32)
    assert numbers.tolist() == [0, 0, 0]
    numbers[:] = 1, 2, 3
    worker = Worker(double, memory)
    worker.send(7)
    assert worker.receive() == "below 7: True"
    assert numbers.tolist() == [2, 4, 6]
    assert bytes(last) == bytes(5)
    end_workers([worker])
    assert worker.process.exitcode == 0


def test_blocks_do_not_overlap_and_are_aligned():
    blocks = SharedMemory([3, 64, 65, 1]).blocks()
    starts = [np.frombuffer(block, np.uint8).ctypes.data for block in blocks]
    for start, end, block in zip(starts, starts[1:], blocks, strict=False):
        assert start + len(block) <= end
        assert (end - start) % SharedMemory.ALIGNMENT == 0


def test_a_dead_worker_is_noticed_when_it_should_answer():
    worker = Worker(double, SharedMemory([4]))
    worker.send(-1)
    with pytest.raises(WorkerDiedError, match=r"the worker process died \(exit code -15\)"):
        worker.receive()
    worker.send(3)  # nobody is there
    with pytest.raises(WorkerDiedError):
        worker.receive()
    end_workers([worker])


def test_a_worker_that_does_not_end_is_killed():
    worker = Worker(signal_pause)
    assert worker.receive() == "ready"
    end_workers([worker], patience=0.1)
    assert worker.process.exitcode == -signal.SIGKILL


def signal_pause(connection):
    """Listens to nobody."""
    connection.send("ready")
    while True:
        signal.pause()
