"""Train in a third-party vector environment: Gymnasium's own vectorized CartPole, in NumPy.

python -m examples.foreign_vector_env --generations 20

Any `gymnasium.vector.VectorEnv` works, with NumPy arrays or torch tensors, in any autoreset mode. The number
of envs and the population size are independent.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch

from es_flipout import FlipoutES, MLPPolicy, evaluate


def train(generations: int, population_size: int = 64, seed: int = 0) -> float:
    """Prints the mean return of each generation and returns the last one."""
    envs = gym.make_vec("CartPole-v1", num_envs=24, vectorization_mode="vector_entry_point")
    policy = MLPPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        hidden_sizes=[16],
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
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
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.generations, arguments.population_size, arguments.seed)


if __name__ == "__main__":
    main()
