"""Metrics in Weights & Biases, online or in files that are synchronized later."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from typing_extensions import override

from es_flipout.run.config import flat_config
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter, RunInfo, scalars
from es_flipout.run.run_directory import RunDirectory, atomic_write

FILE = "wandb.json"
"""File in the run directory that says which run of W&B's this is."""
BINS = 64
"""Of histograms."""


class WandB(Reporter):
    """Logs metrics over env steps, histograms, the configuration, and in the end the best checkpoint.

    A resumed run has the same id. W&B keeps what it has of generations that are run again.
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        project: str = "es_flipout",
        entity: str | None = None,
        group: str | None = None,
        mode: str | None = None,
    ) -> None:
        """Begins a run of W&B's, or continues it.

        Args:
            run: the run, in whose directory W&B keeps its files.
            project: its name.
            entity: user or team; None for the user's default.
            group: that the run belongs to, for example all seeds of a configuration.
            mode: online or offline; None for that of WANDB_MODE, or online.
        """
        import wandb

        self._directory, self._progress = RunDirectory(run.path), 0.0
        settings = wandb.Settings(silent=True, console="off")
        wandb.setup(settings)
        self._run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            mode=mode,  # type: ignore[arg-type]
            dir=run.path,
            id=_id_of(run.path / FILE),
            name=run.path.absolute().name,
            resume="allow",
            config=flat_config(run.config),
            settings=settings,
        )

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        import numpy as np
        import wandb

        self._progress = progress
        logged: dict[str, Any] = dict(scalars(metrics))
        for name, values in histograms.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                logged[name] = wandb.Histogram(np_histogram=np.histogram(finite, BINS))
        self._run.log(logged, step=metrics.env_steps)

    @override
    def close(self) -> None:
        import wandb

        best = self._directory.best
        if best.exists():
            self._run.save(str(best), base_path=str(best.parent), policy="now")
        self._run.finish(exit_code=0 if self._progress >= 1.0 else 1)
        wandb.teardown()  # waits for W&B's own process, which may still be writing its file


def _id_of(file: Path) -> str:
    """Returns the id of a run of W&B's: the one in the run directory, or a new one that is put there."""
    if file.exists():
        return str(json.loads(file.read_text())["id"])
    made = uuid.uuid4().hex[:12]
    with atomic_write(file) as stream:
        stream.write(json.dumps({"id": made}).encode())
    return made
