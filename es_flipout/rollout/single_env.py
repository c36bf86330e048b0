"""The baseline's step loop: one episode of one policy in one environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from es_flipout.envs.engines.contract import warning_text
from es_flipout.envs.guarded_env import GuardedEnv
from es_flipout.envs.values import EnvFault
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.single_policy import make_act

if TYPE_CHECKING:
    from es_flipout.rollout.action_noise import ActionNoise


class Rollout(Protocol):
    """Plays episodes of single policies, one after the other.

    Attributes:
        observation_size: features of which moments are kept; None for none.
    """

    observation_size: int | None

    def play(self, policy: nn.Module, episodes: Episodes, row: int) -> None:
        """Plays one episode, and records what came of it.

        Args:
            policy: who acts: any member as an ordinary module, with its weights already in it.
            episodes: the table that the episode is in; it knows the reset seed, the limit and the noise on
                actions.
            row: which of its rows.
        """

    def close(self) -> None:
        """Is called once, at the end."""


class GymnasiumRollout(Rollout):
    """Episodes in one official Gymnasium environment, which is replaced after a fault."""

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        """Takes what makes the environment, and calls it.

        Raises:
            ValueError: if observations are no Box.
        """
        self._env = GuardedEnv(make_env)
        self._shape = self._env.observation_space.shape
        self.observation_size = self._shape[0] if len(self._shape) == 1 else None
        self._observed = _Moments(self.observation_size or 0)

    @override
    def play(self, policy: nn.Module, episodes: Episodes, row: int) -> None:
        total, length, fault = self._play(policy, episodes, row)
        sums = None
        if fault is None and self.observation_size is not None:
            sums = self._observed.result()[:, np.newaxis]
        faults = {} if fault is None else {0: fault}
        episodes.record(np.array([row]), np.array([total]), np.array([length]), sums, faults)

    def _play(self, policy: nn.Module, episodes: Episodes, row: int) -> tuple[float, int, str | None]:
        """Returns the return, the env steps and the fault of an episode."""
        seed, limit = int(episodes.reset_seed[row]), episodes.limit
        env, act = self._env, make_act(policy, self._env.action_space)
        noise = self._noise(episodes.action_noise, seed)
        dtype = next(policy.parameters()).detach().numpy().dtype
        observed = self._observed
        observed.start(dtype)
        counted = self.observation_size is not None
        most = float("inf") if limit is None else limit
        total, length = 0.0, 0
        try:
            observation, _ = env.reset(seed)
            failure = _physics_failure(env.env)
            over = failure is not None
            while not over and length < most:
                # A copy, because the environment may overwrite its own.
                action = act(observed.add(observation) if counted else observation.astype(dtype))
                if noise is not None:
                    action = noise.added_to_one(action, length)
                length += 1
                observation, reward, terminated, truncated, _ = env.step(action)
                total += reward
                over = terminated or truncated
        except EnvFault as fault:
            return np.nan, length, str(fault)
        return total, length, failure or _physics_failure(env.env)

    def _noise(self, sigma: float, seed: int) -> ActionNoise | None:
        """Returns the noise on the actions of an episode; None if there is none."""
        if not sigma:
            return None
        from es_flipout.rollout.action_noise import ActionNoise  # which imports numba

        noise = ActionNoise(sigma, self._env.action_space, 1)
        noise.begin(np.array([0]), np.array([seed]))
        return noise

    @override
    def close(self) -> None:
        self._env.close()


def _physics_failure(env: gym.Env[Any, Any] | None) -> str | None:
    """Returns what has gone wrong with the physics since the last reset.

    Gymnasium's tasks go on, from where MuJoCo has reset them to.
    """
    data = None if env is None else getattr(env.unwrapped, "data", None)
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

    def add(self, observation: NDArray[Any]) -> NDArray[Any]:
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
