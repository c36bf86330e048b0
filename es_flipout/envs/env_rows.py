"""Gymnasium environments stepped one after the other, and the arrays that they write to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MakeEnv = Callable[[], gym.Env[Any, Any]]


@dataclass(frozen=True)
class RowArrays:
    """What goes into N environments and what comes out, a row each.

    Attributes:
        observations: of the observation space's shape and dtype, [N, ...].
        actions: of the action space's shape and dtype, [N, ...].
        rewards: float64 [N].
        terminated: bool [N].
        truncated: bool [N].
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    @staticmethod
    def shapes(
        num_rows: int, observation_space: spaces.Box, action_space: gym.Space[Any]
    ) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Returns shape and dtype of each array, in order."""
        return [
            ((num_rows, *observation_space.shape), np.dtype(observation_space.dtype)),
            ((num_rows, *(action_space.shape or ())), np.dtype(action_space.dtype)),
            ((num_rows,), np.dtype(np.float64)),
            ((num_rows,), np.dtype(np.bool_)),
            ((num_rows,), np.dtype(np.bool_)),
        ]

    @classmethod
    def local(cls, num_rows: int, observation_space: spaces.Box, action_space: gym.Space[Any]) -> RowArrays:
        """Makes arrays in this process's memory."""
        return cls(*(np.zeros(*each) for each in cls.shapes(num_rows, observation_space, action_space)))

    def part(self, rows: slice) -> RowArrays:
        """Returns views of some rows."""
        return RowArrays(
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.terminated[rows],
            self.truncated[rows],
        )


class EnvRows:
    """Environments in this process, one a row of `arrays`. One that raises is replaced at its next reset."""

    def __init__(self, make: MakeEnv, arrays: RowArrays, first: gym.Env[Any, Any] | None = None) -> None:
        """Makes the environments; `first` is used for row 0 if given."""
        self.arrays = arrays
        self._make = make
        count = len(arrays.rewards)
        made = [] if first is None else [first]
        self._envs: list[gym.Env[Any, Any] | None] = [*made, *(make() for _ in range(count - len(made)))]

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets rows, each with its seed, and writes their observations; returns what went wrong, by row."""

        def reset(row: int, env: gym.Env[Any, Any]) -> None:
            self.arrays.observations[row], _ = env.reset(seed=seeds[row])

        return self._for_each(seeds, reset)

    def step(self, rows: Sequence[int]) -> dict[int, str]:
        """Steps rows by their actions and writes what comes of it; returns what went wrong, by row."""
        arrays = self.arrays

        def step(row: int, env: gym.Env[Any, Any]) -> None:
            (
                arrays.observations[row],
                arrays.rewards[row],
                arrays.terminated[row],
                arrays.truncated[row],
                _,
            ) = env.step(arrays.actions[row].copy())  # which it may keep

        return self._for_each(rows, step)

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            if env is not None:
                env.close()

    def _for_each(
        self, rows: Sequence[int] | Mapping[int, Any], call: Callable[[int, gym.Env[Any, Any]], None]
    ) -> dict[int, str]:
        failures: dict[int, str] = {}
        for row in rows:
            try:
                env = self._envs[row]
                if env is None:
                    env = self._envs[row] = self._make()
                call(row, env)
            except Exception as error:  # whatever a user's environment may raise
                failures[row] = f"{type(error).__name__}: {error}"
                self._discard(row)
        return failures

    def _discard(self, row: int) -> None:
        env, self._envs[row] = self._envs[row], None
        with contextlib.suppress(Exception):
            if env is not None:
                env.close()
