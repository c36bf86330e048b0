"""Metrics as TensorBoard events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
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
    "score_episode_length": "score/episode_length",
}
"""TensorBoard tag of each metric."""


class TensorBoard(Reporter):
    """Writes scalars and histograms over env steps for TensorBoard."""

    def __init__(self, directory: Path, purge_after: int | None = None) -> None:
        """Opens the events file.

        Args:
            directory: the run directory.
            purge_after: when a run is resumed, env steps after which earlier events are discarded.
        """
        self._writer = SummaryWriter(
            str(directory), purge_step=None if purge_after is None else purge_after + 1
        )

    @override
    def report(self, metrics: GenerationMetrics, histograms: Mapping[str, Tensor], progress: float) -> None:
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

    @override
    def close(self) -> None:
        self._writer.close()
