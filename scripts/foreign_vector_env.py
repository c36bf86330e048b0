"""A vector environment of somebody else's: Gymnasium's own vectorized CartPole, in NumPy.

python -m scripts.foreign_vector_env --generations 20

Any `gymnasium.vector.VectorEnv` will do, of NumPy or torch arrays, and whether it resets its rows by itself
or not. The number of rows and the size of the population have nothing to do with each other.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch

from es_flipout import FlipoutES, MLPPolicy, evaluate


def train(generations: int, population_size: int = 64, seed: int = 0) -> float:
    """Returns the mean return of the last population, printing that of each."""
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
        evaluation = evaluate(es.ask(), envs)
        es.tell(evaluation.fitness)
        policy.normalizer.merge(evaluation.observations)
        mean = float(evaluation.fitness.mean())
        print(f"generation {generation:>3}  mean return {mean:6.1f}  env steps {evaluation.env_steps:>7,}")
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
