"""Seconds that a policy takes for one observation, in torch and in a worker of the process pool.

One thread. An MLP runs in NumPy there (`rollout/single_policy.py`); this is the measurement that says why.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.speed.timing import Stopwatch, turns
from es_flipout.cli.results import Results
from es_flipout.policies import MLPPolicy
from es_flipout.rollout.single_policy import make_act

CASES = [("HalfCheetah-v5", [64, 64]), ("Humanoid-v5", [64, 64]), ("Humanoid-v5", [256, 256])]
TORCH, WORKER = "torch", "worker"
FORWARD = "forward, s"
DEFAULTS = {"rounds": 7, "seconds": 0.3, "threads": 1}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: this bench has the common options only."""


@torch.inference_mode()
def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures every case."""
    threadpool_limits(1)
    torch.manual_seed(options.seed)
    cpu = torch.device("cpu")
    for task, hidden_sizes in CASES:
        with gym.make(task) as env:
            policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=hidden_sizes)
            observation = env.reset(seed=0)[0].astype(np.float32)
            act = make_act(policy, env.action_space)

        def in_torch(policy: MLPPolicy = policy, observation: np.ndarray = observation) -> np.ndarray:
            return policy(torch.from_numpy(observation).unsqueeze(0))[0].numpy()

        np.testing.assert_allclose(act(observation), in_torch(), rtol=1e-4, atol=1e-5)
        in_worker = lambda act=act, observation=observation: act(observation)  # noqa: E731
        watches = {
            name: Stopwatch(run, cpu, options.seconds)
            for name, run in ((TORCH, in_torch), (WORKER, in_worker))
        }
        case = f"{task}, MLP {'-'.join(map(str, hidden_sizes))}"
        for index, name in turns(watches, options.rounds):
            results.add(index, name, {FORWARD: watches[name]()}, case=case)
