"""Gymnasium environments in this process, stepped one after the other, and the arrays that they write to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from es_flipout.envs.guarded_env import GuardedEnv, MakeEnv
from es_flipout.envs.values import EnvFault, info_number


@dataclass(frozen=True)
class EnvArrays:
    """Inputs and outputs of N envs.

    Attributes:
        observations: of the observation space's shape and dtype, [N, ...].
        actions: of the action space's shape and dtype, [N, ...].
        rewards: float64 [N].
        terminated: bool [N].
        truncated: bool [N].
        info: the info entries that are kept, float64 [N, I]; NaN for those that are not there.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: NDArray[np.float64]

    @staticmethod
    def shapes(
        num_envs: int, observation_space: spaces.Box, action_space: gym.Space[Any], num_info: int
    ) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Returns shape and dtype of each array, in order."""
        return [
            ((num_envs, *observation_space.shape), np.dtype(observation_space.dtype)),
            ((num_envs, *(action_space.shape or ())), np.dtype(action_space.dtype)),
            ((num_envs,), np.dtype(np.float64)),
            ((num_envs,), np.dtype(np.bool_)),
            ((num_envs,), np.dtype(np.bool_)),
            ((num_envs, num_info), np.dtype(np.float64)),
        ]

    @classmethod
    def local(
        cls, num_envs: int, observation_space: spaces.Box, action_space: gym.Space[Any], num_info: int
    ) -> EnvArrays:
        """Makes arrays in this process's memory."""
        shapes = cls.shapes(num_envs, observation_space, action_space, num_info)
        return cls(*(np.zeros(*each) for each in shapes))

    def part(self, envs: slice) -> EnvArrays:
        """Returns views of some envs' entries."""
        return EnvArrays(
            self.observations[envs],
            self.actions[envs],
            self.rewards[envs],
            self.terminated[envs],
            self.truncated[envs],
            self.info[envs],
        )


class LocalEnvs:
    """N envs in this process. One that has a fault is replaced at its next reset.

    Attributes:
        arrays: their inputs and outputs.
    """

    def __init__(
        self,
        make: MakeEnv,
        arrays: EnvArrays,
        info: Sequence[str] = (),
        first: gym.Env[Any, Any] | None = None,
    ) -> None:
        """Makes the envs.

        Args:
            make: makes one.
            arrays: their inputs and outputs.
            info: names of the info entries that are kept, I of them.
            first: becomes env 0 if given.
        """
        self.arrays = arrays
        self._info = info
        self._envs: list[GuardedEnv] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for i in range(len(arrays.rewards)):
                self._envs.append(GuardedEnv(make, first if i == 0 else None))
            stack.pop_all()

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets envs, each with its seed, and writes observations; returns what went wrong, by env."""
        faults: dict[int, str] = {}
        for i, seed in seeds.items():
            try:
                self.arrays.observations[i], _ = self._envs[i].reset(seed)
            except EnvFault as fault:
                faults[i] = str(fault)
        return faults

    def step(self, ids: Sequence[int]) -> dict[int, str]:
        """Steps envs by their actions and writes the results; returns what went wrong, by env."""
        envs, arrays, faults = self._envs, self.arrays, {}
        observations, rewards = arrays.observations, arrays.rewards
        terminated, truncated = arrays.terminated, arrays.truncated
        actions = arrays.actions.copy()  # which the environments may keep
        for i in ids:
            try:
                observations[i], rewards[i], terminated[i], truncated[i], info = envs[i].step(actions[i])
                for k, name in enumerate(self._info):
                    arrays.info[i, k] = info_number(info.get(name), name)
            except EnvFault as fault:
                faults[i] = str(fault)
        return faults

    def close(self) -> None:
        """Closes the envs."""
        for env in self._envs:
            env.close()
