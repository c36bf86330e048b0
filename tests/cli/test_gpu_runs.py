"""es-train on a GPU: stopped and continued, moved from device to device, and too large for its memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from es_flipout.run import checkpoint

TRAIN = [sys.executable, "-c", "import sys; from es_flipout.cli.train import main; sys.exit(main())"]
SMALL = [
    *("--env.id", "InvertedPendulum-v5", "--env.num_envs", "8", "--env.kwargs", "{max_episode_steps: 30}"),
    *("--es.population_size", "16", "--policy.hidden_sizes", "[8]", "--evaluation.interval", "0"),
    *("--env.fused", "false", "--logging.reporters", "[jsonl]", "--out", "run"),
]
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(*arguments):
    command = [*TRAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_state():
    return checkpoint.load(Path("run/checkpoints/last.pt"))


def lines():
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=ON_GPU)],
)
def test_a_run_on_engine_warp_is_stopped_and_continues(device):
    command = [*TRAIN, *SMALL, "--engine", "warp", "--device", device, "--generations", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("gen     2"):
                process.send_signal(signal.SIGTERM)
                break
        output = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with: es-train --resume run" in output
    stopped = last_state()
    result = train("--resume", "run", "--generations", stopped["generation"] + 2)
    assert result.returncode == 0, result.stderr
    assert f"continues after generation {stopped['generation']}" in result.stdout
    assert [line["generation"] for line in lines()] == list(range(1, stopped["generation"] + 3))
    assert last_state()["env_steps"] > stopped["env_steps"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("cpu", "cpu", marks=pytest.mark.slow),
        pytest.param("cpu", "cuda", marks=ON_GPU),
        pytest.param("cuda", "cpu", marks=ON_GPU),
    ],
)
def test_a_run_continues_on_another_device_with_the_policy_that_it_had(old, new):
    # The steps are too small to show, so that the policy must be the same after two more generations.
    result = train(*SMALL, "--device", old, "--generations", 2, "--optimizer.lr", "1e-30")
    assert result.returncode == 0, result.stderr
    before = last_state()
    result = train("--resume", "run", "--device", new, "--generations", 4)
    assert result.returncode == 0, result.stderr
    after = last_state()
    assert (before["generation"], after["generation"]) == (2, 4)
    policies = before["policy"], after["policy"]
    for name, values in policies[0].items():
        if "normalizer" not in name:
            torch.testing.assert_close(policies[1][name], values, rtol=0, atol=1e-12)
    count = next(name for name in policies[0] if name.endswith("count"))
    steps = [line["env_steps"] for line in lines()]
    assert policies[1][count] - policies[0][count] == steps[3] - steps[1] > 0
    assert f"device: {new}" in Path("run/config.yaml").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_envs_than_fit_the_memory_of_a_gpu_are_told_in_one_line():
    envs = ["--env.id", "Humanoid-v5", "--env.num_envs", 10_000_000, "--es.population_size", 16]
    result = train(*SMALL, *envs, "--device", "cuda", "--generations", 1)
    print(result.stdout, result.stderr)  # shown if something is not as expected
    assert result.returncode == 2
    told = [line for line in result.stderr.splitlines() if line.startswith("es-train: ")]
    assert len(told) == 1
    assert "10000000 envs" in told[0]
    assert "Traceback" not in result.stderr
    assert not Path("run").exists()
