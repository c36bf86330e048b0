"""A run records where and when each of its processes started, and nothing that names the host."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import mujoco
import torch

import es_flipout
from es_flipout.cli import train
from es_flipout.processes import available_cores
from es_flipout.run.run_directory import RunDirectory


def test_every_start_of_a_run_is_recorded(tiny_config: Path):
    before = datetime.now(UTC).replace(microsecond=0)
    assert train.main(["--config", str(tiny_config), "--generations", "1", "--out", "run"]) == 0
    assert train.main(["--resume", "run", "--generations", "2"]) == 0
    run = RunDirectory.open("run")
    first, second = run.read_starts()
    assert before <= datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])
    assert first["cores"] == available_cores()
    assert first["ranks"] == 1
    assert first["memory_gib"] > 0.1
    versions = {"torch": torch.__version__, "mujoco": mujoco.__version__, "python": platform.python_version()}
    assert versions.items() <= first.items()
    assert first["es_flipout"] == es_flipout.__version__
    assert "gpu" not in first
    assert platform.node() not in run.starts.read_text()
    assert str(Path.home()) not in run.starts.read_text()


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path):
    run = RunDirectory(tmp_path)
    assert run.read_starts() == []
    run.starts.write_text('{"cores": 1}\n[1]\n{"cores"')
    assert run.read_starts() == [{"cores": 1}]
    run.add_start({"cores": 2})
    assert run.read_starts() == [{"cores": 1}, {"cores": 2}]
