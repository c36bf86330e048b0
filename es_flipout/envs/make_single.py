"""One official Gymnasium environment, in its wrappers; whatever it raises is named in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from es_flipout.envs.guarded_env import close_env
from es_flipout.envs.keyword_arguments import check_keywords, keyword_hint
from es_flipout.envs.known_ids import check_known, import_module_of
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.native import native_ids
from es_flipout.envs.time_limit import check_limit, with_limit
from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, described, error_text

REMEMBERING_WRAPPERS = ("NormalizeObservation", "NormalizeReward")
"""Wrappers with a memory of earlier episodes, so that a return would depend on which env played before."""

Wrap = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def make_env(env_id: str, wrappers: Sequence[str] = (), **kwargs: Any) -> gym.Env[Any, Any]:
    """Makes one official environment and wraps it.

    An environment that has no time limit gets one of `DEFAULT_EPISODE_STEPS` env steps, unless
    `max_episode_steps` is -1.

    Args:
        env_id: Gymnasium id, or MODULE:ID to import a module that registers it first.
        wrappers: innermost first; each a name in gymnasium.wrappers, or MODULE:CLASS.
        **kwargs: keyword arguments of `gymnasium.make`.

    Raises:
        ValueError: if Gymnasium does not know the id, a wrapper does not exist or remembers earlier episodes,
            or whatever is called to make them raises anything: the message is `ID: Type: text`.
    """
    name = import_module_of(env_id)
    check_known(env_id, native_ids())
    check_keywords(env_id, kwargs)
    check_limit(kwargs.get("max_episode_steps"))
    wraps = [(each, _find_wrapper(each)) for each in wrappers]
    try:
        with deprecations_silenced():
            # What Gymnasium's checker looks at is checked by `GuardedEnv`, in every episode.
            env = gym.make(name, **{"disable_env_checker": True, **kwargs})
    except FOREIGN as error:
        raise EnvFault(f"{env_id}: {error_text(error)}{keyword_hint(kwargs)}") from error
    for each, wrap in wraps:
        env = _wrapped(env_id, env, each, wrap)
    return with_limit(env, kwargs.get("max_episode_steps"))


def _wrapped(env_id: str, env: gym.Env[Any, Any], name: str, wrap: Wrap) -> gym.Env[Any, Any]:
    try:
        wrapped: Any = wrap(env)
    except FOREIGN as error:
        text = str(error) or (_without_flat_form(env) if name == "FlattenObservation" else "")
        type_name = type(error).__name__
        close_env(env)
        raise EnvFault(f"{env_id}: {type_name} (in {name}){f': {text}' if text else ''}") from error
    if isinstance(wrapped, gym.Env):
        return wrapped
    close_env(env)
    raise EnvFault(f"{env_id}: wrapper {name} returned {described(wrapped)}, not an environment")


def _find_wrapper(name: str) -> Wrap:
    module, _, attribute = name.rpartition(":")
    if attribute in REMEMBERING_WRAPPERS:
        raise ValueError(
            f"wrapper {name!r} keeps statistics from one episode to the next; use "
            "policy.normalize_observations and es.fitness_shaping instead"
        )
    try:
        wrapper: Wrap = getattr(import_module(module or "gymnasium.wrappers"), attribute)
    except FOREIGN as error:
        raise ValueError(
            f"wrapper {name!r} does not exist: give a name in gymnasium.wrappers, or MODULE:CLASS "
            f"({error_text(error)})"
        ) from error
    return wrapper


def _without_flat_form(env: gym.Env[Any, Any]) -> str:
    """Returns what an observation space has that cannot be flattened, and a remedy."""
    path, space = _first_without_flat_form(env.observation_space, "")
    if space is None:
        return ""
    where = f", the entry {path} of the observations" if path else ""
    return (
        f"no flat form of {type(space).__name__}{where}: leave it out in a wrapper before FlattenObservation"
    )


def _first_without_flat_form(space: gym.Space[Any], path: str) -> tuple[str, gym.Space[Any] | None]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            found = _first_without_flat_form(part, f"{path}[{key!r}]")
            if found[1] is not None:
                return found
        return "", None
    try:
        spaces.flatten_space(space)
    except NotImplementedError:
        return path, space
    return "", None
