"""What is reported of a generation, and where: JSON lines, TensorBoard, the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class GenerationMetrics:
    """The figures of one generation. All but `timing` are the same whenever the run is repeated."""

    generation: int
    """Generations finished, this one included."""
    env_steps: int
    """Live env steps since the run began."""
    fitness_mean: float
    """Mean fitness of the members (failed ones left out): the return, less rollout.alive_bonus a step."""
    fitness_best: float
    """Highest fitness."""
    fitness_worst: float
    """Lowest fitness."""
    fitness_std: float
    """Standard deviation of the fitness."""
    failed_members: int
    """Members without a usable return; they rank worst."""
    failures: dict[str, int]
    """What went wrong, and in how many episodes, most frequent first."""
    episode_length: float
    """Mean env steps an episode."""
    episode_limit: int | None
    """Env steps after which an episode was cut off, if it was an adaptive limit that did."""
    live_share: float
    """Share of the slot-steps that advanced an episode."""
    sigma: float
    """Standard deviation of the perturbation."""
    lr: float
    """Learning rate."""
    gradient_norm: float
    """Euclidean norm of the gradient estimate."""
    update_norm: float
    """Euclidean norm of the step that the optimizer took."""
    parameter_norm: float
    """Euclidean norm of the parameters after it."""
    update_ratio: float
    """Norm of that step over the norm of the parameters before it."""
    update_cosine: float
    """Cosine between that step and the one before; NaN for the first."""
    tied_fraction: float
    """Share of the members whose fitness another member has too."""
    signal_to_noise: float | None
    """Squared norm of the expected gradient over the variance of its estimate, if logging.signal_to_noise."""
    center_score: float | None
    """Mean return of the unperturbed policy in the official environment, if it was scored."""
    center_score_std: float | None
    """Standard deviation over its episodes."""
    center_episode_length: float | None
    """Mean length of its episodes."""
    timing: Timing
    """How long it took."""

    def as_json(self) -> str:
        """Returns one line of JSON; what is not finite becomes null."""

        def plain(value: object) -> object:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        figures = {name: plain(value) for name, value in asdict(self).items()}
        return json.dumps(figures)

    def scored(self, mean: float, std: float, episode_length: float) -> GenerationMetrics:
        """Returns the figures with those of the center's score."""
        return replace(self, center_score=mean, center_score_std=std, center_episode_length=episode_length)


@dataclass(frozen=True)
class Timing:
    """Wall-clock figures of a generation, which differ from run to run."""

    env_steps_per_second: float
    """Live env steps over the seconds of the generation: rollouts and update. The score of the generation
    before may share the cores with them."""
    seconds: float
    """Seconds of training since the run began, without interruptions and the wait for the last score."""


@dataclass(frozen=True)
class Unscored:
    """A generation that is saved but not reported, because its center is still being scored.

    Attributes:
        metrics: its figures, without the score.
        histograms: of its episodes, by name, on the CPU.
        state: of the run after it.
    """

    metrics: GenerationMetrics
    histograms: dict[str, Tensor]
    state: dict[str, Any]

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it, besides the run's state."""
        return {"metrics": asdict(self.metrics), "histograms": self.histograms}

    @classmethod
    def of(cls, saved: Mapping[str, Any], state: dict[str, Any]) -> Unscored:
        """Returns it from what `saved` returned, and the run's state."""
        timing = Timing(**saved["metrics"]["timing"])
        histograms = {name: values.cpu() for name, values in saved["histograms"].items()}
        return cls(GenerationMetrics(**{**saved["metrics"], "timing": timing}), histograms, state)


class Reporter(Protocol):
    """Somewhere that figures go."""

    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
        """Takes the figures of a generation.

        Args:
            metrics: the figures.
            histograms: values whose distribution is of interest, by name; often empty.
            progress: used share of the run's budget; 0 if it has none.
        """

    def close(self) -> None:
        """Writes what is still held back."""


class JsonLines:
    """Appends one line a generation to metrics.jsonl, whole and at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
        """See `Reporter.report`."""
        self._file.write(metrics.as_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # on disk before the checkpoint that builds on it

    def close(self) -> None:
        """See `Reporter.close`."""
        self._file.close()


TENSORBOARD_TAGS = {
    "generation": "progress/generation",
    "fitness_mean": "fitness/mean",
    "fitness_best": "fitness/best",
    "fitness_worst": "fitness/worst",
    "fitness_std": "fitness/std",
    "failed_members": "fitness/failed_members",
    "episode_length": "rollout/episode_length",
    "episode_limit": "rollout/episode_limit",
    "live_share": "rollout/live_share",
    "sigma": "es/sigma",
    "lr": "es/lr",
    "gradient_norm": "es/gradient_norm",
    "update_norm": "es/update_norm",
    "parameter_norm": "es/parameter_norm",
    "update_ratio": "es/update_ratio",
    "update_cosine": "es/update_cosine",
    "tied_fraction": "fitness/tied_fraction",
    "signal_to_noise": "es/signal_to_noise",
    "center_score": "center/score",
    "center_score_std": "center/score_std",
    "center_episode_length": "center/episode_length",
}
"""TensorBoard tag of each figure; the horizontal axis is env steps."""


class TensorBoard:
    """Writes scalars and histograms for TensorBoard."""

    def __init__(self, directory: Path, purge_after: int | None = None) -> None:
        """Opens the events file.

        Args:
            directory: the run directory.
            purge_after: env steps after which earlier events are void, when a run is resumed.
        """
        self._writer = SummaryWriter(
            str(directory), purge_step=None if purge_after is None else purge_after + 1
        )

    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
        """See `Reporter.report`."""
        step, writer = metrics.env_steps, self._writer
        for field, tag in TENSORBOARD_TAGS.items():
            if (value := getattr(metrics, field)) is not None and math.isfinite(value):
                writer.add_scalar(tag, value, step)
        for field, value in asdict(metrics.timing).items():
            writer.add_scalar(f"time/{field}", value, step)
        for name, values in histograms.items():
            finite = values[torch.isfinite(values)]
            if finite.numel():
                writer.add_histogram(name, finite, step)
        writer.flush()

    def close(self) -> None:
        """See `Reporter.close`."""
        self._writer.close()


def _figure(value: float) -> str:
    """Returns a return as text, with more decimals where it is small."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


SHOWN_FAILURES = 3
"""Reasons for failed episodes that the terminal shows of a generation."""


class Terminal:
    """Prints one line a generation, above a progress bar if the output is a terminal."""

    def __init__(self, console: Console, progress: float | None) -> None:
        """Starts the display.

        Args:
            console: where it goes.
            progress: used share of the run's budget so far, in [0, 1]; None for a run without one.
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
        self._center = "-"

    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
        """See `Reporter.report`."""
        if metrics.center_score is not None:
            self._center = _figure(metrics.center_score)
        left = self._time_left(metrics.timing.seconds, progress)
        failed = f" ({metrics.failed_members} failed)" if metrics.failed_members else ""
        mean, best = _figure(metrics.fitness_mean), _figure(metrics.fitness_best)
        self._console.print(
            f"gen {metrics.generation:>5}  env steps {metrics.env_steps:>13,}  "
            f"fitness mean {mean:>8}  best {best:>8}{failed}  "
            f"center {self._center:>7}  "
            f"{metrics.timing.env_steps_per_second:>9,.0f} env steps/s  left {left}"
        )
        for failure, count in list(metrics.failures.items())[:SHOWN_FAILURES]:
            self._console.print(f"{count:>14} failed episode{'s' if count > 1 else ''}: {failure}")
        if len(metrics.failures) > SHOWN_FAILURES:
            others = sum(list(metrics.failures.values())[SHOWN_FAILURES:])
            self._console.print(f"{others:>14} failed for other reasons, see metrics.jsonl")
        self._bar.update(
            self._task, completed=progress, label=f"generation {metrics.generation}", left=f"left {left}"
        )

    def _time_left(self, seconds: float, progress: float) -> str:
        """Returns h:mm:ss until the budget is used, at the pace since this process began."""
        if self._start is None:
            self._start = (seconds, progress)
        start_seconds, start_progress = self._start
        if progress <= start_progress or seconds <= start_seconds:
            return "-"
        left = round((seconds - start_seconds) * (1 - progress) / (progress - start_progress))
        return f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"

    def close(self) -> None:
        """See `Reporter.close`."""
        self._bar.stop()
