"""Each bench of benchmarks.speed runs, with tiny sizes, prints its table and writes what it measured."""

from __future__ import annotations

import math
import shlex

import pytest
import torch

from benchmarks.speed import __main__ as speed
from benchmarks.speed.es_train import ROOT
from es_flipout.cli.results import Results

SMALL = "--width 8 --depth 1 --population-size 16"
EPISODES = "--env InvertedPendulum-v5 --max-episode-steps 20 --population-size 8"
TINY = "--es.population_size 4 --env.num_envs 4"
COMMANDS = {
    "loop": (f"loop {EPISODES} --generations 1 --rounds 2", "physics"),
    "update": (
        "update --hidden-sizes 32 --conv-scales 0.05 --samples 16 --members-per-base 4 --workers 0 "
        "--rounds 2 --seconds 0.001",
        "ConvNet 5x5 2/3, 26",
    ),
    "policy": (f"policy {SMALL} --rounds 2 --seconds 0.001 --max-gib 1e-5", "dense / flipout"),
    "memory": (f"memory {SMALL} --rounds 1", "independent"),
    "env": (
        "env --env InvertedPendulum-v5 --num-envs 8 --population-size 16 --hidden-sizes 4 --rounds 2 "
        "--seconds 0.001",
        "InvertedPendulum-v5, P = 16",
    ),
    "device": (f"device {EPISODES} --num-envs 4 --hidden-sizes 4 --device cpu --rounds 2", "between steps"),
    "physics": (
        "physics --tasks InvertedPendulum-v5 --policies linear --members 4 --pool-members 4 --trained-for 9 "
        "--rounds 2 --seconds 0.001",
        "InvertedPendulum-v5, linear",
    ),
    "configs": (
        f"configs --configs inverted_pendulum.yaml --arguments '{TINY} --generations 1000000 "
        "--evaluation.interval 5 --evaluation.episodes 1' --rounds 1 --seconds 0.1",
        "inverted_pendulum.yaml",
    ),
    "startup": (f"startup --arguments '{TINY} --generations 1' --rounds 1", "cold"),
    "before_after": (
        f"before_after --against {ROOT} --arguments '{TINY} --generations 1' --episodes 1 --rounds 1 "
        "--configs inverted_pendulum.yaml",
        "inverted_pendulum.yaml",
    ),
    "single_forward": ("single_forward --rounds 2 --seconds 0.001", "Humanoid-v5, MLP 256-256"),
}
EVERYDAY = ("loop", "update", "policy", "single_forward", "physics")


@pytest.mark.parametrize(
    "name", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
)
def test_a_bench_runs(name, capsys, tmp_path):
    command, printed = COMMANDS[name]
    assert speed.main([*shlex.split(command), "--threads", "1", "--json", str(tmp_path / "it.json")]) == 0
    assert printed in capsys.readouterr().out
    results = Results.read(tmp_path / "it.json")
    assert results.settings["command"].startswith(f"python -m benchmarks.speed {command}")
    assert results.settings["machine"]["torch"] == torch.__version__
    assert len(results.column("round")) == (1 if "--rounds 1" in command else 2)
    # No FLOPs in drawing noise, no growth of little memory; what surrounds the physics is a difference.
    least = {"memory": 0.0, "policy": 0.0, "loop": -1.0}.get(name, 1e-9)
    assert all(least <= row["value"] < math.inf for row in results.rows)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("policy --population-size 20", "--population-size must be a multiple of 16"),
        ("policy --device abacus", "device 'abacus' is not available"),
        ("update --samples 100 --members-per-base 40", "--samples must be a multiple of --members-per-base"),
        ("env --env-kwargs {frame_skip:", "--env-kwargs: not valid YAML"),
        ("policy --rounds 0", "--rounds: must be an integer >= 1, got 0"),
        ("policy --seconds nan", "--seconds: must be a number > 0, got nan"),
        ("policy --json nowhere/it.json", "--json: the folder nowhere does not exist"),
        ("env --env-kwargs 5", "--env-kwargs: must be keys and values in YAML"),
        ("configs --configs nowhere.yaml", "config file 'nowhere.yaml' does not exist"),
        ("configs --arguments '--evaluation.interval 0'", "there are no scores to measure"),
        ("startup --against .", "is not a checkout of this project"),
        ("physics --tasks CartPole-v1 --members 4 --trained-for 1", "CartPole-v1 is not a native task"),
        ("env --env CartPole-v1 --num-envs 2 --population-size 4", "CartPole-v1 is not a native task"),
    ],
)
def test_a_mistake_is_told_with_status_2(command, message, capsys):
    assert speed.main([*shlex.split(command), "--threads", "1"]) == 2
    *progress, last = capsys.readouterr().err.splitlines()
    assert message in last
    assert all(line.startswith(("round ", "CartPole-v1, ")) for line in progress)
