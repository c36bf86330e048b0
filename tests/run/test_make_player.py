"""How many envs a rank has."""

from __future__ import annotations

import pytest
from torch import nn

from es_flipout.policies import MLPPolicy
from es_flipout.rollout import Ranks
from es_flipout.run.build import make_policy, make_probe
from es_flipout.run.config import Config, EnvConfig, ESConfig, RolloutConfig
from es_flipout.run.make_player import num_envs_of


def ranks_of(size):
    ranks = Ranks()
    ranks.size = size
    return ranks


@pytest.mark.parametrize(
    ("size", "device", "engine", "independent", "expected"),
    [
        (1, "cpu", "auto", True, 256),  # as configured
        (2, "cpu", "auto", True, 128),  # an eighth of 1,024 episodes: a quarter of an even share
        (8, "cpu", "auto", True, 32),
        (1024, "cpu", "auto", True, 1),
        (8, "cpu", "auto", False, 32),  # an eighth, however many ranks there are
        (1, "cpu", "auto", False, 32),
        (2, "cuda", "warp", True, 256),
        (8, "cuda", "warp", True, 128),  # an even share
        (8, "cuda", "auto", True, 128),
    ],
)
def test_ranks_have_no_more_envs_than_they_keep_busy(size, device, engine, independent, expected):
    config = Config(
        env=EnvConfig("InvertedPendulum-v5", num_envs=256, engine=engine),
        es=ESConfig(population_size=512),
        rollout=RolloutConfig(episodes=2),
        device=device,
    )
    env = make_probe(Config(env=EnvConfig("InvertedPendulum-v5"), device="cpu"))
    policy = make_policy(config.policy, env.single_observation_space, env.single_action_space)
    assert isinstance(policy, MLPPolicy)
    env.close()
    assert num_envs_of(config, policy if independent else nn.Linear(4, 1), ranks_of(size)) == expected
