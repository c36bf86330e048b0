"""EvoX: OpenES in a StdWorkflow, over `EpisodePool`, whose workers run policies in batched products.

Tried on HalfCheetah, population 64, on a machine that was not quiet, best figure of each: 8 envs 30,500 env
steps/s, 16 envs 29,400, 32 envs 26,800, 16 envs and a third worker 28,900. On Humanoid the load hid the
difference; 32 envs took 4 % less CPU time per step than 16, but leave no member to balance two workers
with at a population of 64.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from evox.algorithms import OpenES
from evox.core import Problem
from evox.workflows import StdWorkflow
from torch import Tensor

from benchmarks.peers.contestant import (
    LEARNING_RATE,
    MAX_EPISODE_STEPS,
    SIGMA,
    Job,
    Measurement,
    cores,
    main,
    time_generations,
)
from benchmarks.peers.policy import action_reach, initial_weights, layer_shapes, layer_slices
from benchmarks.peers.pool import EpisodePool, Floats

BEST = {"processes": cores(), "num_envs": 16}


class TorchPolicies:
    """Policies of a worker's envs, as batched matrix products of torch."""

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any], num_envs: int) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        shapes = layer_shapes(observations, actions)
        self._slices = layer_slices(shapes)
        self._layers = [torch.zeros(num_envs, *shape) for shape in shapes]
        self._reach = torch.from_numpy(action_reach(actions))

    def load(self, place: int, weights: Floats) -> None:
        row = torch.from_numpy(weights)
        for layer, part in zip(self._layers, self._slices, strict=True):
            layer[place].view(-1).copy_(row[part])

    def move(self, source: int, target: int) -> None:
        for layer in self._layers:
            layer[target] = layer[source]

    def normalize(self, mean: Floats, scale: Floats) -> None:
        self._scale, self._shift = torch.from_numpy(scale), torch.from_numpy(-mean * scale)

    def act(self, observations: Floats, live: int) -> Floats:
        x = torch.from_numpy(observations[:live])
        x = torch.addcmul(self._shift, x, self._scale).clamp_(-10, 10).unsqueeze_(1)
        for weight, bias in zip(self._layers[::2], self._layers[1::2], strict=True):
            x = torch.baddbmm(bias[:live], x, weight[:live]).tanh_()
        return x.squeeze_(1).mul_(self._reach).numpy()


class PoolProblem(Problem):
    """The returns of one episode each."""

    def __init__(self, pool: EpisodePool) -> None:
        super().__init__()
        self._pool = pool
        self.lengths = np.zeros(0, np.int64)

    def evaluate(self, pop: Tensor) -> Tensor:
        returns, self.lengths = self._pool.evaluate(pop.numpy())
        return torch.from_numpy(returns.astype(np.float32))


def measure(job: Job) -> Measurement:
    """Measures EvoX."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(job.seed)
    settings = job.settings(BEST)
    center = torch.from_numpy(initial_weights(job.task, job.seed))
    with EpisodePool(
        job.task,
        MAX_EPISODE_STEPS,
        TorchPolicies,
        population_size=job.population_size,
        num_weights=len(center),
        seed=job.seed,
        **settings,
    ) as pool:
        problem = PoolProblem(pool)
        algorithm = OpenES(
            job.population_size, center, LEARNING_RATE, SIGMA, optimizer="adam", mirrored_sampling=True
        )
        workflow = StdWorkflow(algorithm, problem, opt_direction="max")

        def run_generation() -> tuple[int, int]:
            workflow.step()
            return int(problem.lengths.sum()), len(problem.lengths)

        return time_generations(run_generation, job.seconds, settings)


if __name__ == "__main__":
    main(measure, ["evox", "torch", "gymnasium", "mujoco", "numpy"])
