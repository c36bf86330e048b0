"""Metrics on the terminal: one line per generation, a progress bar and the time left."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from typing_extensions import override

from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter


def _figure(value: float) -> str:
    """Returns a return as text, with more decimals if it is small."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


SHOWN_FAILURES = 3
"""Number of reasons for failed episodes that the terminal shows per generation."""


class Terminal(Reporter):
    """Prints one line per generation, above a progress bar if the output is a terminal."""

    def __init__(self, console: Console, progress: float | None) -> None:
        """Starts the display.

        Args:
            console: where to print.
            progress: used share of the run's budget so far, in [0, 1]; None for a run without a limit.
        """
        self._console = console
        self._bar = Progress(
            TextColumn("{task.fields[label]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        total = None if progress is None else 1.0
        self._task = self._bar.add_task("", total=total, label="running", left="")
        self._bar.update(self._task, completed=progress or 0.0)
        self._bar.start()
        self._start: tuple[float, float] | None = None
        self._score, self._info = "-", ""

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        if metrics.score is not None:
            self._score = _figure(metrics.score)
            randomized = metrics.score_randomized
            self._info = "" if randomized is None else f"randomized {_figure(randomized):>7}  "
            self._info += "".join(f"{name} {_figure(each):>7}  " for name, each in metrics.score_info.items())
        left = self._time_left(metrics.timing.seconds, progress)
        failed = f" ({metrics.failed_members} failed)" if metrics.failed_members else ""
        mean, best = _figure(metrics.fitness_mean), _figure(metrics.fitness_best)
        self._console.print(
            f"gen {metrics.generation:>5}  env steps {metrics.env_steps:>13,}  "
            f"fitness mean {mean:>8}  best {best:>8}{failed}  "
            f"score {self._score:>7}  {self._info}"
            f"{metrics.timing.env_steps_per_second:>9,.0f} env steps/s  left {left}"
        )
        self._print_failures(metrics.failures, "episode")
        self._print_failures(metrics.score_failures, "episode of the score")
        self._bar.update(
            self._task, completed=progress, label=f"generation {metrics.generation}", left=f"left {left}"
        )

    def _print_failures(self, failures: Mapping[str, int], kind: str) -> None:
        reasons = list(failures.items())
        for failure, count in reasons[:SHOWN_FAILURES]:
            some = kind if count == 1 else kind.replace("episode", "episodes")
            self._console.print(f"{count:>14} failed {some}: {failure}")
        if others := sum(count for _, count in reasons[SHOWN_FAILURES:]):
            self._console.print(f"{others:>14} failed for other reasons, see metrics.jsonl")

    def _time_left(self, seconds: float, progress: float) -> str:
        """Returns h:mm:ss until the budget is used up, at the pace since this process began."""
        if self._start is None:
            self._start = (seconds, progress)
        start_seconds, start_progress = self._start
        if progress <= start_progress or seconds <= start_seconds:
            return "-"
        left = round((seconds - start_seconds) * (1 - progress) / (progress - start_progress))
        return f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"

    @override
    def close(self) -> None:
        self._bar.stop()
