"""Metrics on the terminal: one line per generation, a progress bar and the time left."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from typing_extensions import override

from es_flipout.run.display import Display
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter


def _figure(value: float) -> str:
    """Returns a return as text, with more decimals if it is small."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


SHOWN_FAILURES = 3
"""Number of reasons for failed episodes that the terminal shows per generation."""


class Terminal(Reporter):
    """Prints one line per generation, and has a display show how far the run is."""

    def __init__(self, console: Console, progress: float | None, display: Display | None = None) -> None:
        """Starts the display.

        Args:
            console: where to print.
            progress: used share of the run's budget so far, in [0, 1]; None for a run without a limit.
            display: of the same console, which somebody else closes; None for one of its own.
        """
        self._console, self._has_budget = console, progress is not None
        self._display, self._owns_display = display or Display(console), display is None
        self._display.progress(progress, "")
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
        share = progress if self._has_budget else None
        self._display.progress(share, f"left {left}")

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
        if self._owns_display:
            self._display.close()
