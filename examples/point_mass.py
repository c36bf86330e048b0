"""A MuJoCo task of your own, from MJCF to a trained policy.

    python -m examples.point_mass --generations 40
    es-train --env.id examples.point_mass:PointMass-v0 --generations 60

A mass slides on a plane and should come to rest at the origin.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout import FlipoutES, MLPPolicy, MujocoTask, evaluate, make_vec, register_task


class PointMass(MujocoTask):
    """Written once for a whole batch: the first dimension of every tensor is the env."""

    fields = ("qpos", "qvel")

    def __init__(self, frame_skip: int = 2, start_radius: float = 0.5) -> None:
        super().__init__(str(Path(__file__).with_name("point_mass.xml")), frame_skip)
        self.start_radius = start_radius

    def initial_state(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        angle = rng.uniform(0, 2 * np.pi)
        return self.start_radius * np.array([np.cos(angle), np.sin(angle)]), np.zeros(2)

    def observe(self, fields) -> Sequence[Tensor]:
        return fields["qpos"], fields["qvel"]

    def reward(self, before, after, fields, actions) -> tuple[Tensor, dict[str, Tensor]]:
        near = torch.exp(-5 * fields["qpos"].norm(dim=1))
        effort = 0.01 * actions.to(torch.float64).square().sum(dim=1)
        return near - effort, {"reward_near": near, "reward_effort": -effort}

    def terminated(self, fields) -> Tensor:
        return fields["qpos"].abs().amax(dim=1) > 0.95


register_task("PointMass-v0", PointMass, max_episode_steps=100)


def train(generations: int, population_size: int = 64, seed: int = 0) -> float:
    """Prints the mean return of each generation and returns the last one."""
    envs = make_vec("PointMass-v0", num_envs=population_size)
    policy = MLPPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        hidden_sizes=[16],
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    es = FlipoutES(policy, population_size=population_size, sigma=0.1, optimizer=optimizer, seed=seed)
    mean = float("nan")
    for generation in range(1, generations + 1):
        episodes = evaluate(es.ask(), envs)
        fitness = episodes.fitness
        es.tell(fitness)
        policy.normalizer.merge(episodes.observations())
        mean = float(fitness.mean())
        print(f"generation {generation:>3}  mean return {mean:6.1f}  env steps {episodes.env_steps:>7,}")
    envs.close()
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the cores are for the physics
    train(arguments.generations, arguments.population_size, arguments.seed)


if __name__ == "__main__":
    main()
