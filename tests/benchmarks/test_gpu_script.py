"""benchmarks/gpu.sh, rehearsed on the CPU: what runs there must run at once when there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.summarize_run import milestones

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
SMALL = {
    "DEVICE": "cpu",
    "QUICK": "1",
    "ENV": "InvertedPendulum-v5",
    "SLOTS": "2 4",
    "BEST_SLOTS": "4",
    "TRAIN_ARGS": "--es.population_size 4 --env.num_slots 2 --env.kwargs.max_episode_steps 20 "
    "--generations 2",
}


def run(*arguments, **variables):
    return subprocess.run(
        [SCRIPT, *arguments],
        env={**os.environ, **SMALL, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_throughput_is_written_under_a_name_of_its_own(tmp_path):
    assert (result := run("throughput", tmp_path)).returncode == 0, result.stderr
    document = json.loads((tmp_path / "throughput_gpu_InvertedPendulum-v5.json").read_text())
    assert [name for name in document["medians"] if "physics alone" in name] == [
        f"everything on the CPU, by mujoco_warp, {slots} slots, physics alone: env steps/s"
        for slots in (2, 4)
    ]
    assert (tmp_path / "throughput_gpu_InvertedPendulum-v5.png").exists()


def test_the_parts_of_a_generation_are_measured(tmp_path):
    assert (result := run("profile", tmp_path)).returncode == 0, result.stderr
    [seconds] = json.loads((tmp_path / "profile_gpu_InvertedPendulum-v5.json").read_text())["rounds"]
    assert all(value > 0 for value in seconds.values())


@pytest.mark.slow
def test_training_can_be_continued(tmp_path):
    assert (result := run("train", tmp_path)).returncode == 0, result.stderr
    assert "finished" in result.stdout
    (tmp_path / "train_gpu.json").unlink()
    assert (result := run("train", tmp_path)).returncode == 0, result.stderr
    assert "has used up its budget" in result.stdout
    document = json.loads((tmp_path / "train_gpu.json").read_text())
    [milestone] = document["milestones"]
    assert milestone["generation"] == 2
    assert milestone["env_steps"] == 160
    assert document["config"]["env"]["engine"] == "warp"


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_a_wrong_stage_is_told(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: benchmarks/gpu.sh tests|parity|throughput|")


def test_a_run_is_summarised_by_periods():
    def line(generation, minutes, score=None):
        timing = {"seconds": 60 * minutes, "env_steps_per_second": 100.0 * generation}
        return {
            "generation": generation,
            "env_steps": 10 * generation,
            "centre_score": score,
            "live_share": 0.5,
            "timing": timing,
        }

    lines = [line(1, 4, 7.0), line(2, 9), line(3, 14, 8.0), line(4, 31)]
    found = milestones(lines, minutes=10)
    assert [each["generation"] for each in found] == [2, 3, 4]
    assert [each["last_centre_score"] for each in found] == [7.0, 8.0, 8.0]
    assert [each["median_env_steps_per_second"] for each in found] == [150, 300, 400]
    assert [each["minutes"] for each in found] == [9, 14, 31]
