"""What a reporter is: the contract of classes of the user's, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_flipout.run.config import Config
from es_flipout.run.metrics import GenerationMetrics

Histograms = Mapping[str, NDArray[Any]]
"""Values whose distribution is of interest, by name; in most generations there are none."""


@dataclass(frozen=True)
class RunInfo:
    """The run that a reporter is made for."""

    path: Path
    """The run directory, which exists. A reporter may keep files of its own there."""
    config: Config
    """The configuration, with `auto` devices and engines decided."""
    resumed_at: int | None = None
    """If the run is resumed: env steps after which earlier reports are of no use, because the generations
    that they are of are run again. None for a new run."""


class Reporter(ABC):
    """A destination of metrics.

    One that `logging.reporters` names as MODULE:CLASS is called with a `RunInfo` and the keyword arguments
    that are given there. It lives in a process of its own, so that it holds up nothing, and whatever it
    raises ends itself and not the run.
    """

    @abstractmethod
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        """Takes the metrics of a generation. Generations come in order.

        Args:
            metrics: the metrics.
            histograms: values whose distribution is of interest, by name: NumPy arrays of any shape. There
                are none in most generations; see `logging.histogram_interval`.
            progress: used share of the run's budget, in [0, 1]; 0 for a run without a limit.
        """

    def flush(self) -> None:  # noqa: B027 - most reporters keep nothing back
        """Writes what has been kept back. Called whenever no other report waits."""

    def close(self) -> None:  # noqa: B027 - most reporters have nothing to close
        """Called once, after the last report of this process; a resumed run makes a new reporter."""


TAGS = {
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
"""What TensorBoard, MLflow and W&B call each metric."""


def scalars(metrics: GenerationMetrics) -> dict[str, float]:
    """Returns the metrics of a generation that are finite numbers, by tag."""
    found = {tag: getattr(metrics, field) for field, tag in TAGS.items()}
    found |= {f"score_info/{name}": value for name, value in metrics.score_info.items()}
    found |= {f"time/{name}": value for name, value in vars(metrics.timing).items()}
    return {tag: float(value) for tag, value in found.items() if value is not None and np.isfinite(value)}
