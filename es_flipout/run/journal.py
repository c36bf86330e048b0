"""Reports the generations of a run, and saves its checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from es_flipout.run import checkpoint
from es_flipout.run.config import Config
from es_flipout.run.errors import RunBrokenError, writing
from es_flipout.run.reporters.contract import Reporter
from es_flipout.run.reports import Report
from es_flipout.run.run_directory import RunDirectory


class Journal:
    """Reports generations, and keeps their checkpoints.

    After a failed write nothing more is written, so that no checkpoint is ahead of the reports.
    """

    def __init__(self, config: Config, run: RunDirectory | None, reporters: Sequence[Reporter]) -> None:
        """Takes where they go.

        Args:
            config: of the run.
            run: where checkpoints go; None if another rank writes them.
            reporters: what gets the figures of each generation.
        """
        self._config, self._run, self._reporters = config, run, reporters
        self._error: RunBrokenError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something could not be written."""
        return self._error is not None

    def report(self, report: Report) -> None:
        """Reports a generation, and keeps its checkpoint if it is time for one.

        Raises:
            RunBrokenError: if anything of it cannot be written.
        """
        metrics = report.metrics
        progress = self._config.progress(metrics.generation, metrics.env_steps)
        histograms = {name: values.cpu().numpy() for name, values in report.histograms.items()}
        with self._until_it_fails():
            for reporter in self._reporters:
                with writing(f"the report of generation {metrics.generation}"):
                    reporter.report(metrics, histograms, progress)
            interval = self._config.logging.keep_interval
            if self._run and interval and metrics.generation % interval == 0:
                assert report.state is not None
                checkpoint.save(self._run.kept(metrics.generation), report.state)

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint that a resumed run continues from.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        with self._until_it_fails():
            if self._run:
                checkpoint.save(self._run.last, state)

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of the highest score.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        with self._until_it_fails():
            if self._run:
                checkpoint.save(self._run.best, state)

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        """Remembers the first error of writing, and raises it again instead of writing anything later."""
        if self._error is not None:
            raise self._error
        try:
            yield
        except RunBrokenError as error:
            self._error = error
            raise
