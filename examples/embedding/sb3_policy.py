"""A Stable-Baselines3 policy, improved by evolution on what counts: the return of whole episodes.

python -m examples.embedding.sb3_policy --ppo-steps 20000 --generations 30

PPO learns Hopper for a short while. Then FlipoutES takes over its actor as it is and climbs the
undiscounted return of the deterministic policy. The PPO object is improved in place: `model.predict`,
`model.save` and everything else of Stable-Baselines3 work as before.
"""

from __future__ import annotations

import argparse

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from es_flipout import FlipoutES, evaluate, make_vec

SCORE_SEED = 1_000_000
"""Reset seed of the first scored episode; neither training uses the scored ones."""


class Actor(nn.Module):
    """The deterministic actor of an `ActorCriticPolicy`, for a Box of actions; shares its layers.

    The policy's own forward also samples actions and runs the critic, which would be perturbed for nothing.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.features, self.hidden = policy.pi_features_extractor, policy.mlp_extractor.policy_net
        self.mean = policy.action_net
        self.register_buffer("low", torch.as_tensor(policy.action_space.low))
        self.register_buffer("high", torch.as_tensor(policy.action_space.high))

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions [..., A] for observations [..., O], clipped as `predict` clips them."""
        return self.mean(self.hidden(self.features(observations))).clamp(self.low, self.high)


def score(model: PPO, env_id: str, episodes: int = 10) -> float:
    """Returns the mean return of `model.predict(..., deterministic=True)` in the official environment."""
    envs = make_vec_env(env_id, seed=SCORE_SEED)
    mean, _ = evaluate_policy(model, envs, n_eval_episodes=episodes, deterministic=True)
    envs.close()
    return float(mean)


def improve(
    model: PPO, env_id: str, *, generations: int, population_size: int, sigma: float, lr: float, seed: int
) -> None:
    """Improves the actor of `model` in place."""
    actor = Actor(model.policy)
    optimizer = torch.optim.Adam(actor.parameters(), lr=lr)
    es = FlipoutES(actor, population_size=population_size, sigma=sigma, optimizer=optimizer, seed=seed)
    envs = make_vec(env_id, num_envs=32)
    for generation in range(1, generations + 1):
        fitness = evaluate(es.ask(), envs).fitness
        es.tell(fitness)
        if generation % 5 == 0:
            print(f"generation {generation:>3}  mean return {fitness.mean():7.1f}", flush=True)
    envs.close()


def train(
    env_id: str = "Hopper-v5",
    ppo_steps: int = 20_000,
    generations: int = 30,
    population_size: int = 64,
    sigma: float = 0.02,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the score after PPO, and after evolution."""
    model = PPO("MlpPolicy", env_id, seed=seed, device="cpu").learn(ppo_steps)
    before = score(model, env_id)
    print(f"{ppo_steps:,} env steps of PPO: score {before:.1f}")
    improve(
        model,
        env_id,
        generations=generations,
        population_size=population_size,
        sigma=sigma,
        lr=lr,
        seed=seed,
    )
    after = score(model, env_id)
    print(f"{generations} generations of evolution: score {after:.1f}")
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="Hopper-v5")
    parser.add_argument("--ppo-steps", type=int, default=20_000)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
