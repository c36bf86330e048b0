"""One episode of one policy, as a worker process plays it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from es_flipout.envs.engines.contract import warning_text
from es_flipout.rollout.single_policy import make_act


@dataclass(frozen=True)
class Episode:
    """What came of an episode.

    Attributes:
        total_reward: sum of its rewards.
        length: env steps.
        moments: of the O features of the vectors that were observed and acted on: the first of them, and the
            sums of the deviations from it and of their squares, float64 [3, O]. None if it failed, or nothing
            is counted.
        failure: why it failed; None if it did not.
    """

    total_reward: float
    length: int
    moments: NDArray[np.float64] | None = None
    failure: str | None = None


class Rollout(Protocol):
    """Plays episodes, one after the other.

    Attributes:
        observation_size: features of which moments are returned; None for none.
    """

    observation_size: int | None

    def __call__(self, policy: nn.Module, seed: int, episode_limit: int | None) -> Episode:
        """Plays one episode.

        Args:
            policy: who acts: any member as an ordinary module, with its weights already in it.
            seed: where the episode starts from.
            episode_limit: env steps after which it is cut off; None for no limit but its own.
        """

    def close(self) -> None:
        """Is called once, at the end."""


class GymnasiumRollout:
    """Episodes in one official Gymnasium environment, which is replaced after it has raised."""

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        """Takes what makes the environment, and calls it."""
        self._make_env = make_env
        self._env: gym.Env[Any, Any] | None = make_env()
        space = self._env.observation_space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.observation_size = space.shape[0] if is_vector and space.shape else None
        self._shape = space.shape or ()
        self._action_space = self._env.action_space
        self._observed = _Moments(self.observation_size or 0)

    def __call__(self, policy: nn.Module, seed: int, episode_limit: int | None) -> Episode:
        """See `Rollout`."""
        act = make_act(policy, self._action_space)
        dtype = next(policy.parameters()).detach().numpy().dtype
        observed = self._observed
        observed.start(dtype)
        counted = self.observation_size is not None
        limit = float("inf") if episode_limit is None else episode_limit
        total, length = 0.0, 0
        try:
            if self._env is None:
                self._env = self._make_env()
            env = self._env
            observation, info = env.reset(seed=seed)
            failure = _physics_failure(env, info)
        except Exception as error:  # whatever a user's environment may raise
            return self._failed(error, length)
        over = failure is not None
        while not over and length < limit:
            try:
                row = observed.add(observation) if counted else self._copied(observation, dtype)
            except Exception as error:  # it is not of its space
                return self._failed(error, length)
            action = act(row)
            length += 1
            try:
                observation, reward, terminated, truncated, info = env.step(action)
                total += float(reward)
                over = terminated or truncated
            except Exception as error:
                return self._failed(error, length)
        failure = failure or _physics_failure(env, info)
        if failure is not None:
            return Episode(np.nan, length, failure=failure)
        moments = observed.result() if counted else None
        return Episode(total, length, moments)

    def _copied(self, observation: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns an observation in the dtype asked for; the environment may overwrite its own."""
        row = np.empty(self._shape, dtype)
        row[...] = observation
        return row

    def _failed(self, error: Exception, length: int) -> Episode:
        env, self._env = self._env, None
        with contextlib.suppress(Exception):
            if env is not None:
                env.close()
        return Episode(np.nan, length, failure=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Closes the environment."""
        if self._env is not None:
            self._env.close()


def _physics_failure(env: gym.Env[Any, Any], info: Mapping[str, Any]) -> str | None:
    """Returns what has gone wrong with the physics since the last reset.

    A task of this project says so in `info`. Gymnasium's go on, from where MuJoCo has reset them to.
    """
    if "failure" in info:
        return str(info["failure"])
    data = getattr(env.unwrapped, "data", None)
    if isinstance(data, mujoco.MjData) and data.warning.number.any():
        return warning_text(data.warning.number)
    return None


class _Moments:
    """Collects the observations of an episode; their moments are taken many at a time."""

    CAPACITY = 1024

    def __init__(self, size: int) -> None:
        self._rows: NDArray[Any] = np.empty((self.CAPACITY, size))

    def start(self, dtype: np.dtype[Any]) -> None:
        """Begins an episode whose observations are to be of `dtype`."""
        if self._rows.dtype != dtype:
            self._rows = np.empty_like(self._rows, dtype)
        self._used = 0
        self._sums: NDArray[np.float64] | None = None

    def add(self, observation: Any) -> NDArray[Any]:
        """Counts an observation in, and returns it in the dtype asked for."""
        if self._used == self.CAPACITY:
            self._sums, self._used = self.result(), 0
        row: NDArray[Any] = self._rows[self._used]
        row[:] = observation
        self._used += 1
        return row

    def result(self) -> NDArray[np.float64]:
        """Returns the first observation, and the sums of deviations from it and of their squares."""
        rows = self._rows[: self._used].astype(np.float64)
        first = rows[0] if self._sums is None else self._sums[0]
        deviations = rows - first
        sums = np.stack([first, deviations.sum(axis=0), np.square(deviations).sum(axis=0)])
        if self._sums is not None:
            sums[1:] += self._sums[1:]
        return sums
