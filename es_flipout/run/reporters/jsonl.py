"""metrics.jsonl, the run's own record: what a resumed run and es-report read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from typing_extensions import override

from es_flipout.run.errors import writing
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter


class JsonLines(Reporter):
    """Appends one line per generation to metrics.jsonl, synced to disk.

    A run whose record cannot be written ends, so that no checkpoint is ahead of it.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        with writing(path):
            self._file = path.open("a")

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        with writing(self._file.name):
            self._file.write(metrics.as_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # on disk before the checkpoint that builds on it

    @override
    def close(self) -> None:
        with contextlib.suppress(OSError):  # only what could not be written is still buffered
            self._file.close()
