"""MLflow and W&B: what they hold after a run, after a resumed one, and after a run whose server died.

MLflow's database is SQLite's, with and without a real server in front of it. W&B is offline: the file that
`wandb sync` would upload is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from es_flipout.cli import train
from es_flipout.run.config import Config, flat_config
from es_flipout.run.metrics import GenerationMetrics
from es_flipout.run.reporters import beside
from es_flipout.run.reporters.contract import RunInfo, scalars
from es_flipout.run.reporters.mlflow import MLflow
from es_flipout.run.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def _private(monkeypatch):
    """Nothing leaves the machine, however slow it is."""
    monkeypatch.setattr(beside, "SECONDS_TO_CLOSE", 200.0)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def trained(config, *reporters, options=()):
    names = yaml.safe_dump(["jsonl", *reporters], default_flow_style=True, width=10_000).strip()
    return train.main(["--config", str(config), "--out", "run", f"--logging.reporters={names}", *options])


def expected(run="run"):
    """Returns the scalars of every generation by env steps, as metrics.jsonl has them."""
    lines = RunDirectory(Path(run)).read_metrics()
    return {line["env_steps"]: scalars(GenerationMetrics.of_json(line)) for line in lines}


@contextlib.contextmanager
def mlflow_run(uri):
    """Gives MLflow's client and the run of the run directory."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    yield client, client.get_run(json.loads(Path("run/mlflow.json").read_text())["run_id"])


def history(client, run):
    """Returns the metrics by env steps, and how often each was logged."""
    found, counts = {}, set()
    for tag in run.data.metrics:
        values = client.get_metric_history(run.info.run_id, tag)
        counts.add(len(values) - len({each.step for each in values}))
        for each in values:
            found.setdefault(each.step, {})[tag] = each.value
    return found, counts


def check_mlflow(uri, status, name="es_flipout"):
    with mlflow_run(uri) as (client, run):
        assert (run.info.status, run.info.run_name) == (status, "run")
        assert client.get_experiment(run.info.experiment_id).name == name
        assert set(run.data.params) == set(flat_config(Config()))
        assert run.data.params["es.population_size"] == "16"
        assert run.data.params["env.kwargs"] == '{"max_episode_steps": 60}'
        found, doubles = history(client, run)
        assert found == expected()
        assert doubles == {0}  # each generation once
        assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["best.pt", "config.yaml"]
        return len(found), len(run.data.params), len(run.data.metrics)


# MLflow leaves connections of SQLite's to the garbage collector, and its SQLAlchemy warns of itself.
of_mlflow = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
)


@of_mlflow
def test_mlflow_holds_a_run_and_its_continuation_whole(tiny_config, capfd):
    uri = f"sqlite:///{Path.cwd()}/mlflow.db"
    reporter = {"name": "mlflow", "tracking_uri": uri, "experiment": "pendulums"}
    assert trained(tiny_config, reporter, options=["--generations", "2"]) == 0
    assert check_mlflow(uri, "FINISHED", "pendulums") == (2, len(flat_config(Config())), 21)
    # Generations that did not arrive are added when the run goes on with MLflow again.
    quiet = ["--generations", "4", "--logging.reporters", "[jsonl]"]
    assert train.main(["--resume", "run", *quiet]) == 0
    reporters = f"--logging.reporters=[jsonl, {json.dumps(reporter)}]"
    assert train.main(["--resume", "run", "--generations", "6", reporters]) == 0
    assert check_mlflow(uri, "FINISHED", "pendulums")[0] == 6
    printed, errors = capfd.readouterr()
    assert "no more reports" not in printed
    assert errors == ""


@of_mlflow
def test_mlflow_takes_a_generation_once_that_is_in_the_record_before_it_is_reported(tiny_config):
    uri = f"sqlite:///{Path.cwd()}/mlflow.db"
    assert trained(tiny_config, {"name": "mlflow", "tracking_uri": uri}, options=["--generations", "2"]) == 0
    assert train.main(["--resume", "run", "--generations", "4", "--logging.reporters", "[jsonl]"]) == 0
    directory = RunDirectory(Path("run"))
    # A process that starts slowly finds generations in the record that are on their way to it.
    info = RunInfo(directory.path, directory.read_config(), resumed_at=0)
    with closing(MLflow(info, tracking_uri=uri)) as reporter:
        reporter.flush()
        time.sleep(0.01)  # MLflow takes the same value at the same time for the same
        for line in directory.read_metrics():
            reporter.report(GenerationMetrics.of_json(line), {}, 1.0)
    assert check_mlflow(uri, "FINISHED")[0] == 4


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(folder):
    """Runs a tracking server on a free port; gives its process and address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    with Path(folder, "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert process.poll() is None, Path(folder, "server.log").read_text()
            time.sleep(0.2)
        yield process, address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@of_mlflow
def test_a_tracking_server_holds_a_run_and_its_death_does_not_end_one(
    tiny_config, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(beside, "SECONDS_TO_CLOSE", 10.0)
    with mlflow_server(tmp_path) as (process, address):
        reporter = {"name": "mlflow", "tracking_uri": address}
        assert trained(tiny_config, reporter) == 0
        assert check_mlflow(address, "FINISHED")[0] == 6
        report = GenerationMetrics.as_json

        def as_json(metrics):
            if metrics.generation == 20:
                os.killpg(process.pid, signal.SIGKILL)
            return report(metrics)

        monkeypatch.setattr(GenerationMetrics, "as_json", as_json)
        capfd.readouterr()
        assert train.main(["--resume", "run", "--generations", "40"]) == 0
    printed, _ = capfd.readouterr()
    assert printed.count("no more reports to mlflow: ") == 1
    assert len(expected()) == 40
    assert "finished" in printed
    # There is nothing at the address any more: the next run says so at once.
    assert train.main(["--resume", "run", "--generations", "41"]) == 0
    assert capfd.readouterr().out.count("no more reports to mlflow: ") == 1


def records(path):
    """Reads a file of W&B's: LevelDB's log format after a header of 7 bytes, with Protobuf records in it."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        if (left := 32768 - position % 32768) < 7:  # a header does not cross the end of a block
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def logged_values(items):
    """Returns values by name; those of a histogram are a mapping."""
    found = {}
    for item in items:
        name, *inner = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if inner:
            found.setdefault(name, {})[inner[0]] = value
        else:
            found[name] = value
    return found


def wandb_runs():
    """Returns, for each session: the run, the logged values by step, and the exit code."""
    for path in sorted(Path("run/wandb").glob("offline-run-*/*.wandb")):
        found = list(records(path))
        run = next(each.run for each in found if each.WhichOneof("record_type") == "run")
        rows = [each.history for each in found if each.WhichOneof("record_type") == "history"]
        values = {row.step.num: logged_values(row.item) for row in rows}
        (ended,) = [each.exit for each in found if each.WhichOneof("record_type") == "exit"]
        yield path.parent, run, values, ended.exit_code


def test_wandb_holds_a_run_and_its_continuation_under_one_id(tiny_config, capfd):
    options = ["--generations", "3", "--logging.histogram_interval", "2"]
    reporter = {"name": "wandb", "mode": "offline", "project": "pendulums"}
    assert trained(tiny_config, reporter, options=options) == 0
    time.sleep(1.1)  # W&B names its folders by the second
    assert train.main(["--resume", "run", "--generations", "6"]) == 0
    printed, errors = capfd.readouterr()
    assert "no more reports" not in printed
    assert errors == ""
    identity = json.loads(Path("run/wandb.json").read_text())["id"]
    first, second = wandb_runs()
    for (folder, run, values, status), steps in zip((first, second), (3, 3), strict=True):
        assert (run.run_id, run.project, run.display_name) == (identity, "pendulums", "run")
        assert status == 0
        config = {each.key: json.loads(each.value_json) for each in run.config.update}
        assert set(flat_config(Config())) <= set(config)
        assert config["es.population_size"] == 16
        assert len(values) == steps
        assert (folder / "files" / "best.pt").stat().st_size > 0
    logged = {**first[2], **second[2]}
    for steps, scalar in expected().items():
        own = {name: value for name, value in logged[steps].items() if not name.startswith("_")}
        histograms = {name: own.pop(name) for name in list(own) if isinstance(own[name], dict)}
        assert own == pytest.approx(scalar)
        assert bool(histograms) == (scalar["progress/generation"] in (2, 3, 4, 6))
    assert set(histograms) >= {"fitness", "episode_length"}
    assert sum(histograms["fitness"]["values"]) == 16
