"""Metrics as TensorBoard events.

Events are written when they are reported, by the thread that reports them. torch's `SummaryWriter` has a
thread of its own, which dies with a traceback when the disk is full.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import histogram, scalar
from typing_extensions import override

from es_flipout.run.errors import writing
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter, RunInfo, scalars

_POSITIVE_EDGES = 1e-12 * 1.1 ** np.arange(774)
_BIN_EDGES = np.concatenate([-_POSITIVE_EDGES[::-1], [0.0], _POSITIVE_EDGES])
"""Edges of the bins of histograms, those of TensorFlow: from -1e20 to 1e20, finer towards 0."""


class TensorBoard(Reporter):
    """Writes scalars and histograms over env steps for TensorBoard.

    When a run is resumed, earlier events of the generations that are run again are discarded.
    """

    def __init__(self, run: RunInfo) -> None:
        """Opens the events file in the run directory.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        self._path = run.path / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if run.resumed_at is not None:
            start = SessionLog(status=SessionLog.START)
            first.append(Event(wall_time=time.time(), step=run.resumed_at + 1, session_log=start))
        with writing(self._path):
            self._writer = RecordWriter(self._path.open("wb"))
            self._write(first)

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        summary = Summary()
        for tag, value in scalars(metrics).items():
            summary.MergeFrom(scalar(tag, value))  # type: ignore[no-untyped-call]
        for name, values in histograms.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                summary.MergeFrom(histogram(name, finite, _BIN_EDGES))  # type: ignore[no-untyped-call]
        with writing(self._path):
            self._write([Event(wall_time=time.time(), step=metrics.env_steps, summary=summary)])

    def _write(self, events: list[Any]) -> None:
        for each in events:
            self._writer.write(each.SerializeToString())
        self._writer.flush()

    @override
    def close(self) -> None:
        with contextlib.suppress(OSError):  # the end of what could not be written
            self._writer.close()
