"""How tests have several processes be the ranks of a run, without the seconds that torchrun takes."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import torch.distributed as dist

from es_flipout.error_text import error_text
from es_flipout.processes import Worker, WorkerDiedError, end_workers, use_one_thread
from es_flipout.rollout import ProcessGroup

LOCALHOST = "127.0.0.1"


class RankProcesses:
    """Processes that are the ranks of a run, connected, and do what they are told."""

    def __init__(self, size: int, *, timeout: float = 60.0) -> None:
        """Starts them.

        Args:
            size: how many.
            timeout: their `rank_timeout`.
        """
        wait = datetime.timedelta(seconds=60)
        self._store = dist.TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=wait)
        self._workers = [Worker(_be_rank, self._store.port, rank, size, timeout) for rank in range(size)]

    def do(self, act: Callable[[ProcessGroup], Any]) -> list[Any]:
        """Has each rank act, and returns what comes of it by rank: a value, or an exception's text.

        It is None if the process died.
        """
        module = sys.modules[act.__module__]
        cloudpickle.register_pickle_by_value(module)
        try:
            content = cloudpickle.dumps(act)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        for each in self._workers:
            each.send(content)
        return [_answer(each) for each in self._workers]

    def close(self) -> None:
        end_workers(self._workers, patience=0.1)


def on_ranks(size: int, act: Callable[[ProcessGroup], Any], *, timeout: float = 60.0) -> list[Any]:
    """Has processes of their own act; see `RankProcesses`."""
    ranks = RankProcesses(size, timeout=timeout)
    found = ranks.do(act)
    ranks.close()
    return found


def _answer(worker: Worker) -> Any:
    try:
        return cloudpickle.loads(worker.receive())
    except WorkerDiedError:
        return None


def _be_rank(connection, port: int, rank: int, size: int, timeout: float) -> None:
    use_one_thread()
    store = dist.TCPStore(LOCALHOST, port, is_master=False)
    ranks = ProcessGroup(store, rank, size, local_size=size)
    ranks.start(None, timeout=timeout, device="cpu")
    while True:
        content = connection.recv()
        try:
            answer = cloudpickle.loads(content)(ranks)
        except Exception as error:
            answer = error_text(error)
        connection.send(cloudpickle.dumps(answer))
