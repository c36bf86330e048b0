"""A reporter that never ends a run: once it fails, it says so in one line and is off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from typing_extensions import override

from es_flipout.error_text import FOREIGN, error_text
from es_flipout.run.errors import RunError
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter

Announce = Callable[[str], None]


def failure_line(name: str, reason: str) -> str:
    """Returns what is said of a reporter that has failed."""
    return f"no more reports to {name}: {reason}"


def reason_of(error: BaseException) -> str:
    """Returns in one line why a reporter has failed."""
    return " ".join(str(error).split()) if isinstance(error, RunError) else error_text(error)


class GuardedReporter(Reporter):
    """Reports from this process, for reporters that take no time: those that write a file."""

    def __init__(self, name: str, make: Callable[[], Reporter], announce: Announce) -> None:
        """Makes the reporter.

        Args:
            name: as the configuration has it.
            make: makes it.
            announce: is told if it fails.
        """
        self._name, self._announce = name, announce
        self._reporter: Reporter | None = None
        with self._turned_off_by_failure():
            self._reporter = make()

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        if self._reporter is not None:
            with self._turned_off_by_failure():
                self._reporter.report(metrics, histograms, progress)
                self._reporter.flush()

    @contextlib.contextmanager
    def _turned_off_by_failure(self) -> Iterator[None]:
        try:
            yield
        except FOREIGN as error:
            self._announce(failure_line(self._name, reason_of(error)))
            failed, self._reporter = self._reporter, None
            if failed is not None:
                with contextlib.suppress(*FOREIGN):
                    failed.close()

    @override
    def close(self) -> None:
        if self._reporter is not None:
            with self._turned_off_by_failure():
                self._reporter.close()
