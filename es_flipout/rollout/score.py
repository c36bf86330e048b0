"""Scores a policy: its mean return in the official Gymnasium environment, without any noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.make_loop import loop_of_center
from es_flipout.rollout.player import never


class Scorer:
    """Plays episodes of the center in environments side by side, one episode in each."""

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        episodes: int,
        *,
        first: gym.Env[Any, Any] | None = None,
        processes: int | None = 0,
    ) -> None:
        """Makes the environments.

        Args:
            make_env: makes one environment; pickled by cloudpickle if there are processes.
            episodes: episodes per score.
            first: environment of the first episode, if it differs, for example because it films.
            processes: how many processes the environments are shared out over; 0 for none but this one.

        Raises:
            ValueError: if observations or actions are of a kind that cannot be handled.
        """
        self._episodes = episodes
        # In float64 nothing is rounded that the environment returns.
        self._env = GymnasiumVectorEnv(
            make_env, episodes, dtype=torch.float64, processes=processes, first=first
        )
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    def score(self, policy: nn.Module, *, seed: int, should_stop: Callable[[], bool] = never) -> Episodes:
        """Plays one episode in every environment.

        Args:
            policy: observations [N, ...] to actions [N, ...]; a recurrent one has a state per episode.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
            should_stop: asked before every step.

        Returns:
            The episodes; `mean_return` and `std_return` are of those that did not fail.

        Raises:
            PlayStoppedError: if `should_stop` said so.
        """
        count = self._episodes
        episodes = Episodes(np.zeros(count, np.int64), seed + np.arange(count))
        loop = loop_of_center(self._env, policy)
        loop.add(episodes)
        loop.run(should_stop)
        episodes.spent_steps = loop.spent_steps
        return episodes

    def close(self) -> None:
        """Closes the environments."""
        self._env.close()
