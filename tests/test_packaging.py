"""The wheel: built from the source tree, it carries the shipped configurations and runs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_runs_a_shipped_configuration_by_name(tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)

    program = (
        "import sys, es_flipout.cli.train as train; print(train.__file__); sys.exit(train.main(sys.argv[1:]))"
    )
    arguments = ["--config", "inverted_pendulum.yaml", "--generations", "1", "--out", "run"]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(str(site)), "the source tree ran, not the wheel"
    resolved = yaml.safe_load((elsewhere / "run" / "config.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "configs" / "inverted_pendulum.yaml").read_text())
    assert resolved["env"]["id"] == shipped["env"]["id"]
    assert resolved["es"]["population_size"] == shipped["es"]["population_size"]
