"""Metrics in MLflow: a tracking server, or a database or folder of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from es_flipout.run.config import flat_config
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters.contract import Histograms, Reporter, RunInfo, scalars
from es_flipout.run.run_directory import RunDirectory, atomic_write

FILE = "mlflow.json"
"""File in the run directory that says which run of MLflow's this is."""
MOST_METRICS, MOST_PARAMS = 1000, 100
"""What MLflow takes in one call."""
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class MLflow(Reporter):
    """Logs metrics over env steps, the configuration as parameters, and in the end the best checkpoint.

    A resumed run continues the same run of MLflow's: generations that are there are not logged again, and
    those that are missing are added from metrics.jsonl.
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        tracking_uri: str | None = None,
        experiment: str = "es_flipout",
    ) -> None:
        """Creates a run of MLflow's, or continues it.

        Args:
            run: the run.
            tracking_uri: as for `mlflow.set_tracking_uri`, for example http://localhost:5000 or
                sqlite:///mlflow.db; None for that of MLFLOW_TRACKING_URI, or MLflow's default.
            experiment: its name; it is created if it does not exist.
        """
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        self._client, self._run = mlflow.MlflowClient(), RunDirectory(run.path)
        self._metrics: list[Any] = []
        self._logged, self._progress = 0, 0.0
        with _few_retries():
            address = mlflow.get_tracking_uri()
            known = None if run.resumed_at is None else self._continued(address)
            self._id = known or self._created(address, experiment, run)

    def _continued(self, tracking_uri: str) -> str | None:
        """Opens the run again that the run directory names, if it is at this address."""
        path = self._run.path / FILE
        stored = json.loads(path.read_text()) if path.exists() else {}
        if stored.get("tracking_uri") != tracking_uri:
            return None
        found = self._client.get_run(stored["run_id"])
        self._client.update_run(found.info.run_id, status="RUNNING")
        self._logged = int(found.data.metrics.get("progress/generation", 0))
        # The last may not have arrived; others may be of this process already, and come as reports, too.
        for figures in self._run.read_metrics():
            self._add(GenerationMetrics.of_json(figures))
        return str(found.info.run_id)

    def _created(self, tracking_uri: str, experiment: str, run: RunInfo) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(experiment)
        experiment_id = self._client.create_experiment(experiment) if known is None else known.experiment_id
        created = self._client.create_run(experiment_id, run_name=run.path.absolute().name).info
        stored = {"tracking_uri": tracking_uri, "experiment_id": experiment_id, "run_id": created.run_id}
        with atomic_write(self._run.path / FILE) as file:
            file.write(json.dumps(stored).encode())
        params = [Param(name, _text(value)) for name, value in flat_config(run.config).items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(created.run_id, params=params[start : start + MOST_PARAMS])
        return str(created.run_id)

    @override
    def report(self, metrics: GenerationMetrics, histograms: Histograms, progress: float) -> None:
        self._progress = progress
        self._add(metrics)

    def _add(self, metrics: GenerationMetrics) -> None:
        from mlflow.entities import Metric

        if metrics.generation <= self._logged:
            return
        self._logged = metrics.generation
        now = int(time.time() * 1000)
        new = [Metric(tag, value, now, metrics.env_steps) for tag, value in scalars(metrics).items()]
        if len(self._metrics) + len(new) > MOST_METRICS:
            self.flush()
        self._metrics += new

    @override
    def flush(self) -> None:
        if self._metrics:
            self._client.log_batch(self._id, metrics=self._metrics)
            self._metrics = []

    @override
    def close(self) -> None:
        self.flush()
        for path in (self._run.config, self._run.best):
            if path.exists():
                self._client.log_artifact(self._id, str(path))
        # What has been stopped may be resumed.
        self._client.set_terminated(self._id, "FINISHED" if self._progress >= 1.0 else "KILLED")


def _text(value: Any) -> str:
    """Returns a value as one types it on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Has a wrong address fail at once; later, a server that is restarted is waited for."""
    if RETRIES in os.environ:
        yield
        return
    os.environ[RETRIES] = "1"
    try:
        yield
    finally:
        del os.environ[RETRIES]
