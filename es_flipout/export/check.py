"""Checks an exported policy by running it: step by step, it must act as the policy does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from es_flipout.envs.guarded_env import close_env
from es_flipout.export.formats import Run
from es_flipout.export.module import ExportedModule, Input
from es_flipout.policies.heads import LARGEST_BOUND
from es_flipout.run.loaded_policy import LoadedPolicy

TOLERANCE = 1e-4
"""Largest difference of an action, as a share of half its range; if it has none, of the action, but of 1 if
that is more."""
DIFFERING_SHARE = 1e-3
"""Largest share of steps in which an action of integers may differ: outputs may be equal up to rounding."""


@dataclass(frozen=True)
class Check:
    """What came of a check.

    Attributes:
        steps: env steps played.
        largest: largest difference of an action of floats, in units of the action; None for integers.
        differing: steps in which an action of integers differed; 0 for floats.
        is_passed: whether the differences are within `TOLERANCE` and `DIFFERING_SHARE`.
    """

    steps: int
    largest: float | None
    differing: int
    is_passed: bool


def check(policy: LoadedPolicy, module: ExportedModule, run: Run, steps: int, seed: int = 0) -> Check:
    """Plays episodes in the official environment by the actions of an exported policy.

    The policy sees the same observations. Each of the two keeps its own state from the start of an episode to
    its end, so that differences may add up.

    Args:
        policy: that was exported.
        module: its inputs.
        run: runs the exported policy.
        steps: env steps to play.
        seed: reset seed of the first episode; the next have seed + 1, seed + 2, ...

    Raises:
        ValueError: if the environment cannot be made.
    """
    env = policy.make_env()
    act = exported_actor(module, run)
    largest, differing, within = 0.0, 0, True
    reach = _half_range(policy.action_space)
    state, start = None, True
    try:
        for _ in range(steps):
            if start:
                observation, _ = env.reset(seed=seed)
                state, seed = None, seed + 1
            action = act(observation, start)
            wanted, state = policy.predict(observation, state)
            if reach is None:
                differing += int(not np.array_equal(action, wanted))
            else:
                differences = np.abs(np.asarray(action, np.float64) - wanted)
                largest = float(np.maximum(largest, differences.max()))  # NaN stays NaN
                scale = np.where(np.isfinite(reach), reach, np.maximum(np.abs(wanted), 1.0))
                within &= bool((differences <= TOLERANCE * scale).all())  # also False for NaN
            observation, _, terminated, truncated, _ = env.step(action)
            start = bool(terminated or truncated)
    finally:
        close_env(env)
    return Check(
        steps, None if reach is None else largest, differing, within and differing <= DIFFERING_SHARE * steps
    )


def exported_actor(module: ExportedModule, run: Run) -> Callable[[Any, bool], NDArray[Any]]:
    """Returns how an exported policy acts in a single environment.

    Returns:
        A function from an observation, and whether it is the first of an episode, to an action.
    """
    initial = [leaf.numpy() for leaf in module.initial_state]
    state = initial

    def act(observation: Any, start: bool) -> NDArray[Any]:
        nonlocal state
        parts = [_part(observation, each) for each in module.observations]
        action, *state = run([*parts, *(initial if start else state)])
        found: NDArray[Any] = action[0]
        return found

    return act


def _part(observation: Any, each: Input) -> NDArray[Any]:
    """Returns what an input takes of an observation, [1, ...]."""
    for key in each.path:
        observation = observation[key]
    dtype = np.dtype(str(each.dtype).removeprefix("torch."))
    return np.asarray(observation, dtype)[None]


def _half_range(space: Any) -> NDArray[np.float64] | None:
    """Returns half the range of each action, infinity where it has no bounds; None for integers."""
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        return None
    reach = (space.high.astype(np.float64) - space.low) / 2
    return np.where(reach < LARGEST_BOUND, reach, np.inf)
