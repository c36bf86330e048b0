"""scripts/train_suite: real runs, stopped and continued, scored by their last policies, and taken away."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from es_flipout.cli import eval as es_eval
from es_flipout.run import checkpoint
from scripts import suite_report, train_suite

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tiny_config, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "short": {"arguments": f"--config {tiny_config} --generations 4", "published": "10 to 20"},
                "other": {"arguments": f"--config {tiny_config} --optimizer.name ClipUp"},
            }
        )
    )
    return path


@pytest.fixture
def train(suite, tmp_path):
    def run(*words):
        options = ["--out", tmp_path / "runs", "--results", tmp_path / "results", "--episodes", 3, *words]
        train_suite.main([str(word) for word in [suite, *options]])

    return run


def results(tmp_path, name):
    return json.loads((tmp_path / "results" / f"train_{name}.json").read_text())


@pytest.mark.slow
def test_every_seed_of_every_configuration_is_trained_and_scored(train, tmp_path, capsys):
    train("--seeds", 3, 4, "--jobs", 2, "--pretrained", tmp_path / "pretrained", "--plot", tmp_path / "p.png")
    short, other = results(tmp_path, "short"), results(tmp_path, "other")
    assert [run["seed"] for run in short["runs"]] == [3, 4]
    assert [run["generation"] for run in (*short["runs"], *other["runs"])] == [4, 4, 6, 6]
    assert all(run["finished"] for run in (*short["runs"], *other["runs"]))
    assert other["config"]["optimizer"]["name"] == "ClipUp"
    for run in short["runs"]:
        assert len(run["curve"]["score"]) == 2  # every second generation
        assert run["curve"]["env_steps"][-1] == run["env_steps"]
    assert other["runs"][0]["returns"] != other["runs"][1]["returns"]
    printed = capsys.readouterr().out
    assert f"**{statistics.fmean(run['score'] for run in short['runs']):.1f}**" in printed
    assert "10 to 20" in printed
    assert (tmp_path / "p.png").stat().st_size > 0
    # What is taken away plays as the run does.
    run = short["runs"][0]
    words = ["--episodes", "3", "--seed", str(train_suite.SCORE_SEED)]
    assert es_eval.main([str(tmp_path / "pretrained" / "short"), *words]) == 0
    assert f"return  mean {run['score']:.1f} " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_trained_once_and_not_continued_with_another_configuration(suite, train, tmp_path, capsys):
    train("--seeds", 0, "--only", "short")
    run = tmp_path / "runs" / "short" / "seed0"
    checkpoint, before = run / "checkpoints" / "last.pt", results(tmp_path, "short")
    written = checkpoint.stat().st_mtime_ns
    train("--seeds", 0, "--only", "short")
    assert checkpoint.stat().st_mtime_ns == written
    assert results(tmp_path, "short") == before
    assert not (tmp_path / "train_other.json").exists()
    changed = yaml.safe_load(suite.read_text())
    changed["short"]["arguments"] += " --optimizer.lr 0.1"
    suite.write_text(yaml.safe_dump(changed))
    with pytest.raises(SystemExit, match="2"):
        train("--seeds", 0, "--only", "short")
    assert "seed0 was begun with another optimizer; remove it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_suite_that_was_stopped_goes_on(suite, train, tmp_path):
    endless = yaml.safe_load(suite.read_text())
    endless["short"]["arguments"] += " --generations 100000"
    suite.write_text(yaml.safe_dump(endless))
    words = [str(suite), "--only", "short", "--seeds", "0", "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.train_suite", *words],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "runs" / "short" / "seed0"
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    process.wait(timeout=60)
    stopped = checkpoint.load(run / "checkpoints" / "last.pt")["generation"]
    train("--only", "short", "--seeds", 0, "--report")
    (unfinished,) = results(tmp_path, "short")["runs"]
    assert unfinished["generation"] == stopped
    assert not unfinished["finished"]
    assert "(unfinished)" in suite_report.table([results(tmp_path, "short")])
