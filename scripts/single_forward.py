"""Microseconds that a policy takes for one observation, in torch and in a worker of the process pool.

python -m scripts.single_forward --json single_forward.json

One thread. An MLP runs in NumPy there (`evaluators/single_policy.py`); this is the measurement that says why.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from es_flipout.bench.machine import describe_machine
from es_flipout.bench.report import compared, interleave, medians
from es_flipout.bench.timing import Stopwatch
from es_flipout.cli.process import silence_mujoco
from es_flipout.policies import MLPPolicy
from es_flipout.rollout.single_policy import make_act

CASES = [("HalfCheetah-v5", [64, 64]), ("Humanoid-v5", [64, 64]), ("Humanoid-v5", [256, 256])]
TORCH, WORKER = "torch", "worker"


def measure(task: str, hidden_sizes: list[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Returns, for the JSON, seconds a call by round and in the median, and their ratio."""
    with gym.make(task) as env:
        policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=hidden_sizes)
        observation = env.reset(seed=0)[0].astype(np.float32)
        act = make_act(policy, env.action_space)

    def in_torch() -> np.ndarray:
        return policy(torch.from_numpy(observation).unsqueeze(0))[0].numpy()

    cpu = torch.device("cpu")
    with torch.inference_mode():
        np.testing.assert_allclose(act(observation), in_torch(), rtol=1e-4, atol=1e-5)
        contestants = {
            TORCH: Stopwatch(TORCH, in_torch, cpu, seconds),
            WORKER: Stopwatch(WORKER, lambda: act(observation), cpu, seconds),
        }
        figures = interleave(contestants, rounds, lambda measured, done: None)
    ratios = {f"{TORCH} / {WORKER}": lambda each: each[TORCH] / each[WORKER]}
    return {
        "task": task,
        "hidden_sizes": hidden_sizes,
        "medians": medians(figures),
        **compared(figures, ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="least duration of a measurement")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    torch.manual_seed(0)
    silence_mujoco()
    results = [measure(task, sizes, arguments.rounds, arguments.seconds) for task, sizes in CASES]
    for result in results:
        label = f"{result['task']}, MLP {'-'.join(map(str, result['hidden_sizes']))}"
        torch_us, worker_us = (1e6 * result["medians"][name] for name in (TORCH, WORKER))
        ratio = result["median_ratios"][f"{TORCH} / {WORKER}"]
        print(f"{label:32} torch {torch_us:6.1f}   worker {worker_us:6.1f} microseconds   ratio {ratio:.2f}")
    if arguments.json:
        command = shlex.join(["python", "-m", "scripts.single_forward", *sys.argv[1:]])
        document = {"command": command, "machine": describe_machine(), "seed": 0, "results": results}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
