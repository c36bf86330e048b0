"""Wrappers of environments, as configurations name them: which class, and its keyword arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np

from es_flipout.described import described
from es_flipout.envs.guarded_env import close_env
from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.named_spec import NamedSpec, check_kwargs, spec_kwargs, spec_name
from es_flipout.policies.flat_box import no_flat_form

REMEMBERING_WRAPPERS = ("NormalizeObservation", "NormalizeReward")
"""Wrappers with a memory of earlier episodes, so that a return would depend on which env played before."""

_EXAMPLE = "{name: FrameStackObservation, stack_size: 4}"


def wrapper_name(wrapper: NamedSpec) -> str:
    """Returns which wrapper is meant: a name in gymnasium.wrappers, or MODULE:CLASS.

    Raises:
        ValueError: if that cannot be told, or a key is not text.
    """
    return spec_name(wrapper, "wrapper", _EXAMPLE)


@dataclass(frozen=True)
class Wrapping:
    """A wrapper that exists, with keyword arguments that it takes.

    Attributes:
        name: as the user gave it.
        wrap: the class, or a function.
        kwargs: keyword arguments.
    """

    name: str
    wrap: Callable[..., Any]
    kwargs: Mapping[str, Any]

    def around(self, env: gym.Env[Any, Any], env_id: str) -> gym.Env[Any, Any]:
        """Wraps an environment, or closes it.

        Raises:
            ValueError: if the wrapper raises anything, or returns no environment.
        """
        try:
            wrapped: Any = self.wrap(env, **self.kwargs)
        except FOREIGN as error:
            hint = no_flat_form(env.observation_space) if self.name == "FlattenObservation" else ""
            text = str(error) or hint
            close_env(env)
            kind = type(error).__name__
            raise EnvFault(f"{env_id}: {kind} (in {self.name}){f': {text}' if text else ''}") from error
        if isinstance(wrapped, gym.Env):
            return wrapped
        close_env(env)
        raise EnvFault(f"{env_id}: wrapper {self.name} returned {described(wrapped)}, not an environment")


def find_wrappers(wrappers: Sequence[NamedSpec]) -> list[Wrapping]:
    """Finds wrappers and checks their keyword arguments.

    Raises:
        ValueError: if one does not exist, remembers earlier episodes, or takes other keyword arguments.
    """
    if isinstance(wrappers, str | Mapping):
        raise ValueError(f"wrappers must be a list, like [{_EXAMPLE}], got {wrappers!r}")
    return [_find(wrapper_name(each), each) for each in wrappers]


def _find(name: str, wrapper: NamedSpec) -> Wrapping:
    module, _, attribute = name.rpartition(":")
    if attribute in REMEMBERING_WRAPPERS:
        raise ValueError(
            f"wrapper {name!r} keeps statistics from one episode to the next; use "
            "policy.normalize_observations and es.fitness_shaping instead"
        )
    try:
        found: Callable[..., Any] = getattr(import_module(module or "gymnasium.wrappers"), attribute)
    except FOREIGN as error:
        raise ValueError(
            f"wrapper {name!r} does not exist: give a name in gymnasium.wrappers, or MODULE:CLASS "
            f"({error_text(error)})"
        ) from error
    kwargs = spec_kwargs(wrapper)
    kinds = check_kwargs("wrapper", name, found, kwargs)
    return Wrapping(name, found, {key: _as_annotated(kwargs[key], kinds.get(key, "")) for key in kwargs})


def _as_annotated(value: Any, annotation: str) -> Any:
    """Returns a list, as YAML has it, as the tuple or NumPy array that a wrapper is annotated to take."""
    if not isinstance(value, list):
        return value
    if re.match(r"(typing\.)?tuple\b", annotation, re.IGNORECASE):
        return tuple(value)
    return np.asarray(value) if re.search(r"\b(ndarray|NDArray)\b", annotation) else value
