"""Metrics as TensorBoard events.

Events are written when they are reported, by the thread that reports them. torch's `SummaryWriter` has a
thread of its own, which dies with a traceback when the disk is full.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard.summary import histogram, scalar
from typing_extensions import override

from es_flipout.run.metrics import GenerationMetrics, Reporter

TENSORBOARD_TAGS = {
    "generation": "progress/generation",
    "fitness_mean": "fitness/mean",
    "fitness_best": "fitness/best",
    "fitness_worst": "fitness/worst",
    "fitness_std": "fitness/std",
    "failed_members": "fitness/failed_members",
    "episode_length": "rollout/episode_length",
    "episode_limit": "rollout/episode_limit",
    "sigma": "es/sigma",
    "lr": "es/lr",
    "gradient_norm": "es/gradient_norm",
    "update_norm": "es/update_norm",
    "parameter_norm": "es/parameter_norm",
    "update_ratio": "es/update_ratio",
    "update_cosine": "es/update_cosine",
    "tied_fraction": "fitness/tied_fraction",
    "signal_to_noise": "es/signal_to_noise",
    "score": "score/mean",
    "score_std": "score/std",
    "score_randomized": "score/randomized",
    "score_episode_length": "score/episode_length",
}
"""TensorBoard tag of each metric."""

_POSITIVE_EDGES = 1e-12 * 1.1 ** np.arange(774)
_BIN_EDGES = np.concatenate([-_POSITIVE_EDGES[::-1], [0.0], _POSITIVE_EDGES])
"""Edges of the bins of histograms, those of TensorFlow: from -1e20 to 1e20, finer towards 0."""


class TensorBoard(Reporter):
    """Writes scalars and histograms over env steps for TensorBoard.

    It never ends a run: when events cannot be written, it says so once and writes no more.
    """

    def __init__(
        self,
        directory: Path,
        purge_after: int | None = None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Opens the events file.

        Args:
            directory: the run directory.
            purge_after: when a run is resumed, env steps after which earlier events are discarded.
            announce: is told when events cannot be written.
        """
        self._announce = announce
        self._path = directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer: RecordWriter | None = None
        first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if purge_after is not None:
            start = SessionLog(status=SessionLog.START)
            first.append(Event(wall_time=time.time(), step=purge_after + 1, session_log=start))
        with self._turned_off_by_failure():
            self._writer = RecordWriter(self._path.open("wb"))
            self._write(first)

    @override
    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
        if self._writer is None:
            return
        scalars = {tag: getattr(metrics, field) for field, tag in TENSORBOARD_TAGS.items()}
        scalars |= {f"score_info/{name}": value for name, value in metrics.score_info.items()}
        scalars |= {f"time/{field}": value for field, value in asdict(metrics.timing).items()}
        summary = Summary()
        for tag, value in scalars.items():
            if value is not None and math.isfinite(value):
                summary.MergeFrom(scalar(tag, value))  # type: ignore[no-untyped-call]
        for name, values in histograms.items():
            finite = values[torch.isfinite(values)].cpu().numpy()
            if finite.size:
                summary.MergeFrom(histogram(name, finite, _BIN_EDGES))  # type: ignore[no-untyped-call]
        with self._turned_off_by_failure():
            self._write([Event(wall_time=time.time(), step=metrics.env_steps, summary=summary)])

    def _write(self, events: list[Any]) -> None:
        assert self._writer is not None
        for each in events:
            self._writer.write(each.SerializeToString())
        self._writer.flush()

    @contextlib.contextmanager
    def _turned_off_by_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            self._writer = None
            self._announce(f"no more TensorBoard events: cannot write {self._path}: {error.strerror}")

    @override
    def close(self) -> None:
        with contextlib.suppress(OSError):  # the end of what could not be written
            if self._writer is not None:
                self._writer.close()
