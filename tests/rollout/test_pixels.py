"""Observations that are images, from the environment's uint8 to fitness and score."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from playing import rollout
from torch import Tensor, nn

from es_flipout.envs import make_vec
from es_flipout.perturbations import Flipout
from es_flipout.policies import CNNPolicy
from es_flipout.population import Population
from es_flipout.rollout import HostPlayer
from es_flipout.run.build import official_scorer
from es_flipout.run.config import EnvConfig
from examples.catch import Catch

MEMBERS = 8
CATCH = "examples.catch:Catch-v0"


class Flat(nn.Module):
    """One linear map of the pixels."""

    row_wise = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)
        self.seen: set[torch.dtype] = set()

    def forward(self, observations: Tensor) -> Tensor:
        self.seen.add(observations.dtype)
        assert observations.shape[-3:] == (8, 8, 1)
        return self.linear((observations / 255).flatten(-3)).argmax(dim=-1)


def populate() -> Population:
    policy = Flat()
    noise = Flipout().sample(dict(policy.named_parameters()), MEMBERS, torch.Generator().manual_seed(0))
    return Population(policy, noise, 1.0)


def play(act, seed: int) -> float:
    """Returns the return of an episode, whose actions are `act(image [1, 8, 8, 1])`."""
    env = Catch()
    image, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        assert image in env.observation_space
        image, reward, over, _, _ = env.step(int(act(torch.from_numpy(image).unsqueeze(0).float())))
        total += reward
    return total


def assert_as_alone(returns: Tensor, population: Population) -> None:
    """Asserts that member m has the return of its own episode of seed m; rewards are float32."""

    def alone(member: int) -> float:
        weights = population.member(member)
        return play(lambda image: torch.func.functional_call(population.policy, weights, image), member)

    np.testing.assert_allclose(returns.flatten().numpy(), list(map(alone, range(MEMBERS))), rtol=1e-6)


@pytest.mark.parametrize(
    ("engine", "num_envs"), [("auto", 1), ("auto", 3), ("gymnasium", MEMBERS), ("gymnasium_processes", 4)]
)
def test_members_play_as_they_do_alone(engine, num_envs):
    population = populate()
    env = make_vec(CATCH, num_envs, engine=engine, threads=2)
    result = rollout(HostPlayer(env), population, range(MEMBERS))
    env.close()
    assert_as_alone(result.returns, population)
    assert len(result.returns.unique()) > 2
    assert result.env_steps == 7 * MEMBERS


def test_other_vector_environments_may_show_images():
    population = populate()
    env = SyncVectorEnv([Catch] * 3, autoreset_mode=AutoresetMode.DISABLED)
    result = rollout(HostPlayer(env), population, range(MEMBERS))
    assert_as_alone(result.returns, population)


def test_no_moments_are_kept_of_images():
    result = rollout(HostPlayer(make_vec(CATCH, 3)), populate(), range(MEMBERS))
    assert result.observations.count == 0
    assert result.observations.mean.shape == (0,)


def test_scorer_and_population_show_a_policy_the_same():
    population = populate()
    scorer = official_scorer(EnvConfig(CATCH), MEMBERS)
    score = scorer.score(population.policy, seed=0)
    scorer.close()
    assert score.returns.tolist() == [play(population.policy, seed) for seed in range(MEMBERS)]
    assert population.policy.seen == {torch.float32}
    selected = population.select(torch.zeros(MEMBERS, dtype=torch.int64))
    population.policy.seen.clear()
    selected._policy.seen = population.policy.seen
    env = make_vec(CATCH, MEMBERS)
    selected(env.reset(seed=0)[0])
    assert population.policy.seen == {torch.float32}


class Blinded(gym.Wrapper):
    """Shows floats, of which some are NaN, and pays NaN with them."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, (8, 8, 1))

    def reset(self, *, seed=None, options=None):
        image, info = super().reset(seed=seed, options=options)
        self.blind = seed % 2
        return image / np.float32(255), info

    def step(self, action):
        image, reward, *rest = super().step(action)
        return image / np.float32(255), np.nan if self.blind else reward, *rest


def test_a_reward_that_is_not_finite_fails_an_episode_of_images_too():
    env = make_vec(CATCH, 3, wrappers=[f"{__name__}:Blinded"])
    result = rollout(HostPlayer(env), populate(), range(MEMBERS))
    assert result.returns.flatten().isnan().tolist() == [False, True] * (MEMBERS // 2)
    assert result.failures == {"a reward or an observation is not finite": MEMBERS // 2}


def test_the_cnn_is_scored_as_it_plays():
    space = Catch().observation_space
    policy = CNNPolicy(space, spaces.Discrete(3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.network[-1].weight.mul_(100.0)
    scorer = official_scorer(EnvConfig(CATCH), 6)
    score = scorer.score(policy, seed=0)
    scorer.close()
    assert score.returns.tolist() == [play(policy, seed) for seed in range(6)]
    assert len(set(score.returns)) > 2
