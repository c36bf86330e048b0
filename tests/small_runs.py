"""Small runs: a tiny one, one of a generation for each kind of policy; and observations with parts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from es_flipout import Config, Trainer
from es_flipout.run.config import EnvConfig, ESConfig, EvaluationConfig, LoggingConfig, PolicyConfig
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.run_directory import RunDirectory

TINY_RUN = {
    "env": {"id": "InvertedPendulum-v5", "num_envs": 8, "kwargs": {"max_episode_steps": 60}},
    "policy": {"hidden_sizes": [8]},
    "es": {"population_size": 16, "sigma": 0.1},
    "optimizer": {"lr": 0.05},
    "evaluation": {"interval": 2, "episodes": 2},
    "logging": {"reporters": ["jsonl"]},
    "generations": 6,
    "threads": 1,
}
"""The configuration of a run that takes a second."""

KINDS = {
    "mlp": (EnvConfig("HalfCheetah-v5"), PolicyConfig("mlp", hidden_sizes=[16, 16])),
    "linear": (EnvConfig("Hopper-v5"), PolicyConfig("linear", action_bounds="clip")),
    "gru": (EnvConfig("HalfCheetah-v5"), PolicyConfig("gru", hidden_sizes=[8], recurrent_size=8)),
    "lstm": (EnvConfig("Hopper-v5"), PolicyConfig("lstm", hidden_sizes=[8], recurrent_size=8)),
    "cnn": (EnvConfig("examples.catch:Catch-v0"), PolicyConfig("cnn", conv_layers=[[4, 3, 1, 1]])),
    "discrete": (EnvConfig("CartPole-v1"), PolicyConfig("mlp", hidden_sizes=[8])),
    "stacked": (EnvConfig("Hopper-v5"), PolicyConfig("linear", observation_stack=3)),
    "stacked_gru": (EnvConfig("Hopper-v5"), PolicyConfig("gru", recurrent_size=8, observation_stack=2)),
    "frozen": (EnvConfig("Hopper-v5"), PolicyConfig("small_runs:Frozen")),
    "alike": (EnvConfig("small_runs:Alike-v0"), PolicyConfig("linear")),
    "parts": (EnvConfig("small_runs:Parts-v0"), PolicyConfig("mlp", hidden_sizes=[8])),
}
"""Environment and policy of each run, by name."""


class Parts(gym.Env):
    """Observations with an image, a vector, a category and several of them; actions of integers."""

    def __init__(self):
        self.observation_space = spaces.Dict(
            camera=spaces.Box(0, 255, (2, 2, 1), np.uint8),
            joints=spaces.Tuple((spaces.Box(-1.0, 1.0, (3,), np.float64), spaces.Discrete(3, start=1))),
            switches=spaces.MultiDiscrete([2, 3]),
        )
        self.action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(self.np_random.integers(1 << 30).item())
        return self.observation_space.sample(), {}

    def step(self, action):
        return (
            self.observation_space.sample(),
            float(action[0]),
            bool(self.np_random.random() < 0.05),
            False,
            {},
        )


class Bessel(nn.Module):
    """A policy with a function that ONNX does not have."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.layer = nn.Linear(observation_space.shape[0], action_space.shape[0])

    def forward(self, observations):
        return torch.special.bessel_j0(self.layer(observations))


class Frozen(nn.Module):
    """A policy whose first parameter is frozen and of integers: which observations it looks at."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.seen = nn.Parameter(torch.tensor([3, 1]), requires_grad=False)
        self.layer = nn.Linear(2, action_space.shape[0])

    def forward(self, observations):
        return torch.tanh(self.layer(observations[:, self.seen]))


class Alike(gym.Env):
    """Observations whose parts would have the same name if their keys were joined."""

    def __init__(self):
        part = spaces.Box(-1.0, 1.0, (2,))
        self.observation_space = spaces.Dict(a_b=part, a=spaces.Dict(b=part))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(self.np_random.integers(1 << 30).item())
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action[0]), False, False, {}


gym.register("Alike-v0", Alike, max_episode_steps=50)
gym.register("Parts-v0", Parts, max_episode_steps=50)


def train_small_run(kind: str, path: Path) -> RunDirectory:
    """Trains a policy of a kind for one generation; returns its run."""
    env, policy = {**KINDS, "bessel": (EnvConfig("Hopper-v5"), PolicyConfig("small_runs:Bessel"))}[kind]
    config = Config(
        env=EnvConfig(env.id, {"max_episode_steps": 30}, num_envs=4, fused=False),
        policy=policy,
        es=ESConfig(population_size=4),
        evaluation=EvaluationConfig(episodes=2),
        logging=LoggingConfig(reporters=["jsonl"]),
        generations=1,
        threads=1,
        out=str(path),
    )
    run = RunDirectory.create(config)
    with closing(Trainer(config)) as trainer, closing(JsonLines(run.metrics)) as lines:
        trainer.train(run, [lines])
    return run
