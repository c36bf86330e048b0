"""Scores an unperturbed policy in the official Gymnasium environment: the judge of every run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from es_flipout.config import EnvConfig
from es_flipout.envs import make_env

FrameSink = Callable[[NDArray[np.uint8]], None]
"""Receives rendered frames, uint8 [height, width, 3], in order."""


@dataclass(frozen=True)
class OfficialScore:
    """Returns and lengths (env steps) of the episodes, in order."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """Standard deviation of the returns (of the population, 0 for one episode)."""
        return statistics.pstdev(self.returns)


class OfficialEvaluator:
    """Some official environments, side by side, so that the policy runs once a step for all of them."""

    def __init__(self, env: EnvConfig, episodes: int, *, render: bool = False) -> None:
        """Makes the environments.

        Args:
            env: the environment's id, keyword arguments and wrappers.
            episodes: number of episodes a score.
            render: whether the first episode can be rendered.
        """
        modes = ["rgb_array" if render and index == 0 else None for index in range(episodes)]
        self.envs: list[gym.Env[Any, Any]] = [
            make_env(env.id, env.wrappers, **{**env.kwargs, "render_mode": mode}) for mode in modes
        ]

    @torch.no_grad()
    def score(self, policy: nn.Module, *, seed: int, on_frame: FrameSink | None = None) -> OfficialScore:
        """Runs one episode of the policy in every environment.

        Args:
            policy: observations [N, O] to actions [N, A].
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
            on_frame: if given, gets every frame of the first episode.

        Raises:
            ValueError: if frames are wanted of environments made without `render`.
        """
        if on_frame and self.envs[0].render_mode is None:
            raise ValueError("on_frame needs environments made with render=True")
        like = next(policy.parameters())
        observations = [env.reset(seed=seed + index)[0] for index, env in enumerate(self.envs)]
        returns, lengths = [0.0] * len(self.envs), [0] * len(self.envs)
        live = list(range(len(self.envs)))
        while live:
            if on_frame and live[0] == 0:
                on_frame(np.asarray(self.envs[0].render(), dtype=np.uint8))
            batch = torch.as_tensor(np.stack([observations[i] for i in live])).to(like)
            actions = policy(batch).cpu().numpy()
            still_live = []
            for i, action in zip(live, actions, strict=True):
                observations[i], reward, terminated, truncated, _ = self.envs[i].step(action)
                returns[i] += float(reward)
                lengths[i] += 1
                if not (terminated or truncated):
                    still_live.append(i)
            live = still_live
        return OfficialScore(returns, lengths)

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()
