"""The policy as an ordinary torch module, for the libraries that take one."""

from __future__ import annotations

import gymnasium as gym
import torch
from torch import Tensor, nn

from benchmarks.peers.contestant import HIDDEN
from benchmarks.peers.policy import OUTPUT_GAIN, action_reach


class MLP(nn.Module):
    """observation -> 64 tanh -> 64 tanh -> action, tanh times the greatest action."""

    def __init__(self, task: str) -> None:
        super().__init__()
        env = gym.make(task)
        inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]
        self.register_buffer("reach", torch.from_numpy(action_reach(env.action_space)))
        env.close()
        self.layers = nn.Sequential(
            *(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()),
            *(nn.Linear(HIDDEN, outputs), nn.Tanh()),
        )
        for layer in self.layers[::2]:
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers[4].weight.data.mul_(OUTPUT_GAIN)

    def forward(self, observation: Tensor) -> Tensor:
        """Returns actions [..., A] for observations [..., O]."""
        return self.layers(observation) * self.reach
