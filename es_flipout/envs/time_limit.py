"""Limits on the length of episodes: one that the user asks for, and one for environments that have none."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

DEFAULT_EPISODE_STEPS = 10_000
"""Env steps after which the episodes of an environment without a limit of its own are cut off."""


class DefaultTimeLimit(TimeLimit):
    """Cuts off the episodes of an environment that may never end them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env, DEFAULT_EPISODE_STEPS)


def check_limit(limit: Any) -> None:
    """Checks the `max_episode_steps` that a user asks for; None asks for nothing.

    Raises:
        ValueError: if it is neither a positive integer nor -1.
    """
    is_integer = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is not None and not (is_integer and (limit == -1 or limit >= 1)):
        raise ValueError(f"max_episode_steps must be an integer >= 1, or -1 for no limit, got {limit!r}")


def with_limit(env: gym.Env[Any, Any], asked: int | None) -> gym.Env[Any, Any]:
    """Returns an environment that has a limit, unless -1 was asked for; wraps it if it has none."""
    return DefaultTimeLimit(env) if asked != -1 and _time_limit(env) is None else env


def default_limit(env: gym.Env[Any, Any]) -> int | None:
    """Returns `DEFAULT_EPISODE_STEPS` if that is the only limit that an environment has; otherwise None."""
    return DEFAULT_EPISODE_STEPS if isinstance(_time_limit(env), DefaultTimeLimit) else None


def _time_limit(env: gym.Env[Any, Any]) -> TimeLimit | None:
    """Returns the outermost `TimeLimit` among an environment's wrappers."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return env
        env = env.env
    return None
