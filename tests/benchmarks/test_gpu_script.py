"""benchmarks/gpu.sh, rehearsed on the CPU: what is in it must run at once when there is a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu import throughput
from es_flipout.cli.results import Results
from scripts import summarize_run
from scripts.summarize_run import milestones, without_folder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
FIRST = {"quick_forwards.json", "quick_update.json", "logs_first.tgz"}
SECOND = {
    *(f"quick_{name}.json" for name in ("throughput", "profile", "train", "engines")),
    "logs_second.tgz",
}
THIRD = {
    *(f"quick_{name}.json" for name in ("native_InvertedPendulum", "small_lr")),
    "logs_third.tgz",
}


def run(*arguments, **variables):
    return subprocess.run(
        [SCRIPT, *arguments],
        env={**os.environ, "DEVICE": "cpu", "QUICK": "1", "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def load(folder, name):
    return Results.read(folder / f"quick_{name}.json")


@pytest.mark.slow
def test_both_calls_leave_eight_files(tmp_path):
    for call in ("first", "second"):
        result = run(call, tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
    assert {path.name for path in tmp_path.iterdir()} == FIRST | SECOND
    assert load(tmp_path, "forwards").column("population_size") == [32, 16]
    assert load(tmp_path, "update").column("contestant") == ["flipout", "flipout, 1 base", "low rank 1"]
    pools = ["process pool, 1 worker", "process pool, 2 workers"]
    on_warp = [f"everything on the CPU, by mujoco_warp, {size} envs" for size in (4, 2)]
    assert set(load(tmp_path, "throughput").column("contestant")) == {*pools, *on_warp}
    assert all(row["value"] > 0 for row in load(tmp_path, "profile").rows)
    train = json.loads((tmp_path / "quick_train.json").read_text())
    assert train["milestones"][-1]["generation"] == 2
    assert train["config"]["env"]["engine"] == "warp"
    assert load(tmp_path, "engines").column("contestant") == ["official environment", "engine warp"]
    with tarfile.open(tmp_path / "logs_second.tgz") as logs:
        assert {"log/parity.txt", "log/run/checkpoints/last.pt", "log/stages.txt"} <= set(logs.getnames())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_third_call_leaves_few_files(tmp_path):
    result = run("third", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path.name for path in tmp_path.iterdir()} == THIRD
    assert "vectorized" in load(tmp_path, "native_InvertedPendulum").column("contestant")
    train = json.loads((tmp_path / "quick_small_lr.json").read_text())
    assert train["milestones"][-1]["generation"] == 2
    assert train["config"]["optimizer"]["lr"] == 2e-4
    with tarfile.open(tmp_path / "logs_third.tgz") as logs:
        assert {"log/memory.txt", "log/noise.txt", "log/run/checkpoints/last.pt"} <= set(logs.getnames())


SCRIPT_TEXT = SCRIPT.read_text()
PATIENCE = int(re.search(r"--kill-after=(\d+)", SCRIPT_TEXT)[1])
"""Seconds that a stage has to end in once it is cut off."""


def body(call):
    return SCRIPT_TEXT[SCRIPT_TEXT.index(f"{call}() {{") :].split("\n}\n")[0]


def limits(call):
    """The stages of a call and their limits in seconds, with the time to end in; one for all native tasks."""
    found = re.findall(r'^ +stage "?(\w+)\S* (\d+) ', body(call), re.M)
    return {name.removesuffix("_"): int(limit) + PATIENCE for name, limit in found}


def plan(call):
    """The seconds that a call plans with, and what it keeps for the stages after training."""
    found = re.search(r"TOTAL:-(\d+)} - \(SECONDS - start\) - (\d+)\)\)", body(call))
    return int(found[1]), int(found[2])


def test_the_limits_add_up_to_less_than_a_call_may_last():
    to_start_and_pack = 20  # unpacking what was carried there among it
    assert sum(limits("first").values()) + to_start_and_pack <= 200
    stages = limits("second")
    assert list(stages) == ["smoke", "parity", "throughput", "profile", "summary", "scores"]
    total, after_training = plan("second")
    assert total + to_start_and_pack <= 590
    assert PATIENCE + stages["summary"] + stages["scores"] <= after_training
    least_training = total - sum(stages.values()) + stages["summary"] + stages["scores"] - after_training
    assert least_training >= 120


def test_the_third_call_leaves_a_minute_to_train():
    stages = limits("third")
    assert list(stages) == ["repeating", "resume", "noise", "native", "memory", "summary"]
    total, after_training = plan("third")
    assert total + 20 <= 590
    assert PATIENCE + stages["summary"] <= after_training
    to_begin = 20  # whether the policy fits is tried without a limit, and took 17 s
    before_training = to_begin + sum(stages.values()) + stages["native"] - stages["summary"]
    least_training = int(re.search(r"\|\| left=(\d+)", body("third"))[1])
    assert total - before_training - after_training >= least_training >= 60


@pytest.mark.parametrize(("call", "stages"), [("first", 3), ("second", 7), ("third", 7)])
def test_a_stage_that_fails_does_not_end_the_others(tmp_path, call, stages):
    result = run(call, tmp_path, PYTHON="false")
    assert result.returncode == stages
    assert result.stdout.count(": exit status 1") == stages
    assert f"{call}: {stages} stages failed or were cut off" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [f"logs_{call}.tgz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: benchmarks/gpu.sh first|second|third [OUT]"),
        (["fourth"], "usage: benchmarks/gpu.sh first|second|third [OUT]"),
        (["first"], "a rehearsal needs a folder of its own"),
    ],
)
@pytest.mark.parametrize("rehearsal", [{"QUICK": ""}, {"DEVICE": "cuda"}], ids=["cpu", "quick"])
def test_a_mistake_is_told(arguments, message, rehearsal):
    result = run(*arguments, **rehearsal)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_throughput_is_written_round_by_round_and_ends_in_time(tmp_path, capsys):
    options = [
        *("--env", "InvertedPendulum-v5", "--env-kwargs", '{"max_episode_steps": 20}', "--device", "cpu"),
        *("--num-envs", "4", "2", "--members-per-env", "2", "--workers", "1", "--pool-population-size", "4"),
        *("--hidden-sizes", "4", "--seconds", "0.01", "--total", "0.1", "--json", str(tmp_path / "it.json")),
    ]
    throughput.main(options)
    assert "s are left, and this took" in capsys.readouterr().out
    results = Results.read(tmp_path / "it.json")
    assert results.settings["command"].startswith(
        "python -m benchmarks.gpu.throughput --env InvertedPendulum"
    )
    pool, warp = "process pool, 1 worker", "everything on the CPU, by mujoco_warp, 4 envs"
    assert list(results.settings["contestants"]) == [pool, warp]
    rates = dict.fromkeys((pool, warp), ("env steps/s", "members/s"))
    rates[warp] += ("physics alone, env steps/s",)
    for name, metrics in rates.items():
        for metric in metrics:
            assert results.by_round(name, metric).keys() == {0, 1}
            assert results.spread(name, metric).lowest > 0
        assert results.by_round(name, "GPU memory, bytes") == {0: 0}


def test_a_run_is_summarized_by_periods():
    def line(generation, minutes, score=None):
        timing = {"seconds": 60 * minutes, "env_steps_per_second": 100.0 * generation, "live_share": 0.5}
        return {
            "generation": generation,
            "env_steps": 10 * generation,
            "score": score,
            "timing": timing,
        }

    lines = [line(1, 4, 7.0), line(2, 9), line(3, 14, 8.0), line(4, 31)]
    found = milestones(lines, minutes=10)
    assert [each["generation"] for each in found] == [2, 3, 4]
    assert [each["last_score"] for each in found] == [7.0, 8.0, 8.0]
    assert [each["median_env_steps_per_second"] for each in found] == [150, 300, 400]
    assert [each["minutes"] for each in found] == [9, 14, 31]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is not a run directory: it has no config.yaml"),
        (["config.yaml"], "it has no complete generation to summarize"),
        (["config.yaml", "metrics.jsonl"], "it has no complete generation to summarize"),
    ],
    ids=["no run", "no metrics", "empty metrics"],
)
def test_a_run_without_a_generation_is_told_in_one_line(files, message, monkeypatch, capsys):
    assert milestones([], minutes=10) == []
    Path("it").mkdir()
    for name in files:
        (Path("it") / name).touch()
    monkeypatch.setattr(sys, "argv", ["summarize_run", "it", "--json", "it.json"])
    assert summarize_run.main() == 2
    assert capsys.readouterr().err == f"summarize_run: {message}\n"
    assert not Path("it.json").exists()


def test_a_summary_names_no_folder_of_the_machine():
    config = {"init_from": "/home/me/clone/runs/it", "env": {"kwargs": {"files": ("/home/me/clone/a", "b")}}}
    assert without_folder(config, Path("/home/me/clone")) == {
        "init_from": "runs/it",
        "env": {"kwargs": {"files": ["a", "b"]}},
    }
    others = {"init_from": None, "out": "/home/me/clone2/runs", "seed": 0, "env": {"id": "Humanoid-v5"}}
    assert without_folder(others, Path("/home/me/clone")) == others
