"""The border to a single environment: whatever it raises or returns is checked, and named in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from es_flipout.described import described
from es_flipout.envs import values
from es_flipout.envs.contract import FailureReason
from es_flipout.envs.flat_observations import observation_array
from es_flipout.envs.values import OLD_API, EnvFault
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.policies import FlatBox, flat_box

MakeEnv = Callable[[], gym.Env[Any, Any]]


class GuardedEnv:
    """A `gymnasium.Env` whose every answer is checked. One that has a fault is replaced at its next reset.

    Attributes:
        env: the environment; None if it has to be made anew.
        observation_space: of what `reset` and `step` return: the environment's, flattened if it is no Box.
    """

    def __init__(self, make: MakeEnv, env: gym.Env[Any, Any] | None = None) -> None:
        """Takes an environment.

        Args:
            make: makes one.
            env: one that has been made already; `make` is called if None.

        Raises:
            ValueError: if observations have no flat form.
        """
        self._make = make
        made = make() if env is None else env
        self.env: gym.Env[Any, Any] | None = made
        self.observation_space, self.action_space = spaces_of(made)
        # Those of observations that can be passed on as they are.
        self._shape = None if isinstance(self.observation_space, FlatBox) else self.observation_space.shape
        self._dtype = np.dtype(self.observation_space.dtype)

    def reset(self, seed: int | None) -> tuple[NDArray[Any], Mapping[str, Any]]:
        """Starts an episode.

        Returns:
            The observation, of the space's shape and dtype, and the info. The environment may overwrite the
            observation later.

        Raises:
            EnvFault: if the environment raises, returns anything else, or says that the episode has failed.
        """
        try:
            if self.env is None:
                self.env = self._make()
            observation, info = values.reset_result(self.env.reset(seed=seed))
            observation = observation_array(observation, self.observation_space, "reset")
        except FOREIGN as error:
            raise self._fault(error) from error
        _check_failure(info)
        return observation, info

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, Mapping[str, Any]]:
        """Advances the episode, which must have been started.

        Returns:
            Observation as from `reset`, reward, terminated, truncated and info.

        Raises:
            EnvFault: if the environment raises, returns anything else, or says that the episode has failed.
        """
        try:
            result: Any = self.env.step(action)  # type: ignore[union-attr] # it is there after a reset
            if type(result) is tuple and len(result) == 5:
                observation, reward, terminated, truncated, info = result
                if (  # as most are: this runs at every step of every env
                    type(observation) is np.ndarray
                    and observation.dtype is self._dtype
                    and observation.shape == self._shape
                    and isinstance(reward, float)
                    and type(terminated) is bool
                    and type(truncated) is bool
                    and type(info) is dict
                    and "failure" not in info
                ):
                    return result
            observation, reward, terminated, truncated, info = values.step_result(result)
            checked = (
                observation_array(observation, self.observation_space, "step"),
                values.number(reward),
                values.flag(terminated, "terminated"),
                values.flag(truncated, "truncated"),
                info,
            )
        except FOREIGN as error:
            raise self._fault(error) from error
        _check_failure(info)
        return checked

    def close(self) -> None:
        """Closes the environment, if there is one; see `close_env`."""
        env, self.env = self.env, None
        if env is not None:
            close_env(env)

    def _fault(self, error: BaseException) -> EnvFault:
        """Gives the environment up; returns what to raise."""
        self.close()
        text = error_text(error)
        if isinstance(error, TypeError) and "reset() got an unexpected keyword argument" in text:
            text += f" ({OLD_API}: declare reset(self, *, seed=None, options=None))"
        return EnvFault(text)


def close_env(env: gym.Env[Any, Any]) -> None:
    """Closes an environment; what it raises comes too late to matter."""
    with contextlib.suppress(*FOREIGN):
        env.close()


def _check_failure(info: Mapping[str, Any]) -> None:
    """Raises an `EnvFault` for the reason that an environment of ours gives, which goes on to work."""
    reason = info.get("failure")
    if isinstance(reason, FailureReason):
        raise EnvFault(reason)


def spaces_of(env: gym.Env[Any, Any]) -> tuple[spaces.Box, gym.Space[Any]]:
    """Returns the spaces of observations, flattened if they are no Box, and of actions.

    Raises:
        ValueError: if one is missing, or observations have no flat form.
    """
    return flat_box(_space(env, "observation_space")), _space(env, "action_space")


def _space(env: gym.Env[Any, Any], name: str) -> gym.Space[Any]:
    space = getattr(env, name, None)
    if not isinstance(space, gym.Space):
        raise EnvFault(f"its {name} is {described(space)}, a gymnasium.Space is needed: set it in __init__")
    return space
