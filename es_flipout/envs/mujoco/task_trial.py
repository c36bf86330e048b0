"""Tries a task's hooks once, before the first episode, for the mistakes that only values show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from es_flipout.envs.engines.contract import PhysicsEngine
from es_flipout.envs.mujoco.checked_task import CheckedTask, State, TaskError
from es_flipout.envs.mujoco.task import Fields

STARTS = 3
"""Starts that the hooks are tried at: at all of them together, and at each alone."""


def try_task(task: CheckedTask, engine: PhysicsEngine, *, info: bool) -> None:
    """Calls every hook as episodes will, with the physics of all envs at a start, where it is left.

    Args:
        task: the task.
        engine: runs its model, and shows the fields that it declares.
        info: whether info entries will be wanted.

    Raises:
        TaskError: if a hook raises or returns what it must not, there or for another number of envs; if it
            draws two starts for one seed, writes to what it is given, or mixes the envs; or if no start is
            finite.
        ValueError: if the engine cannot run the model.
    """
    states = [_drawn(task, seed) for seed in range(STARTS)]
    if not any(np.isfinite(np.concatenate(state)).all() for state in states):
        raise TaskError(f"{task.name}.initial_state returned no finite state for the seeds 0 to {STARTS - 1}")
    sample, actions = _sampled(task, engine, states), _some_actions(task, engine)
    _call_hooks(task, engine.fields, actions[: engine.num_envs], info)

    def called(envs: slice) -> _Results:
        fields = {name: each[envs] for name, each in sample.items()}
        try:
            return _call_hooks(task, fields, actions[:STARTS][envs], info)
        except TaskError as error:
            size = len(fields["qpos"])
            raise TaskError(f"{error} (in a call for N = {size}: hooks take any number of envs)") from error

    together, again = (called(slice(STARTS)) for _ in range(2))
    alone = [called(slice(i, i + 1)) for i in range(STARTS)]
    if not together.observation.isfinite().all(dim=1).any():
        raise TaskError(f"{task.name}.observe returned NaN or infinity at every start")
    # Sums of several terms may differ in their last bits.
    tolerance = 1e-5 if sample["qpos"].dtype == torch.float64 else 1e-3
    for hook, one, two, apart in (
        ("observe", together.observation, again.observation, [each.observation for each in alone]),
        ("reward", together.reward, again.reward, [each.reward for each in alone]),
    ):
        # Hooks that add noise differ from call to call anyway.
        if _is_same(one, two) and not torch.allclose(
            one, torch.cat(apart), rtol=tolerance, atol=tolerance / 10, equal_nan=True
        ):
            raise TaskError(
                f"{task.name}.{hook} mixes the envs: what it returns for one depends on the others "
                "(sum, norm, mean and the like need dim=1)"
            )


class _Results(NamedTuple):
    observation: Tensor
    reward: Tensor


def _call_hooks(task: CheckedTask, fields: Fields, actions: Tensor, info: bool) -> _Results:
    """Calls the hooks of a step that moves nothing, with the fields that each may read."""
    declared = {name: fields[name] for name in task.fields}
    given = {**fields, "actions": actions}
    kept = {name: each.clone() for name, each in given.items()}

    def check_unchanged(hook: str) -> None:
        for name, each in given.items():
            if not _is_same(each, kept[name]):
                raise TaskError(f"{task.name}.{hook} writes to {name!r}, which is not its own: use clone()")

    before = task.locate(declared).clone()
    check_unchanged("locate")
    for name in ("before", "after"):
        given[name], kept[name] = before.clone(), before
    observation = task.observe(declared, torch.float64)
    check_unchanged("observe")
    reward, terms = task.reward(given["before"], given["after"], declared, actions)
    check_unchanged("reward")
    task.terminated(declared)
    check_unchanged("terminated")
    if info:
        task.info(fields, terms)
        check_unchanged("state_info")
    return _Results(observation, reward)


def _drawn(task: CheckedTask, seed: int) -> State:
    """Returns the start of a seed."""
    state, again = (task.seeded_state(seed) for _ in range(2))
    if not all(np.array_equal(*each, equal_nan=True) for each in zip(state, again, strict=True)):
        raise TaskError(
            f"{task.name}.initial_state must draw from the rng that it is given: "
            f"seed {seed} gave two different states"
        )
    return state


def _sampled(task: CheckedTask, engine: PhysicsEngine, states: list[State]) -> dict[str, Tensor]:
    """Resets all envs; returns the fields at each of the states."""
    num_envs, seen = engine.num_envs, []
    for first in range(0, STARTS, num_envs):
        chosen = [states[(first + i) % STARTS] for i in range(num_envs)]
        qpos, qvel = (np.stack(each) for each in zip(*chosen, strict=True))
        try:
            engine.reset(np.arange(num_envs, dtype=np.int32), qpos, qvel)
        except RuntimeError as error:  # the recording of Warp's graphs
            raise ValueError(f"the engine cannot run the model with {num_envs} envs: {error}") from error
        seen.append({name: each[:STARTS].clone() for name, each in engine.fields.items()})
    return {name: torch.cat([each[name] for each in seen])[:STARTS] for name in seen[0]}


def _some_actions(task: CheckedTask, engine: PhysicsEngine) -> Tensor:
    """Returns different actions for all envs, and at least for every start."""
    low, high = task.action_range()
    low, high = np.nan_to_num(low, neginf=-1.0), np.nan_to_num(high, posinf=1.0)
    shape = max(engine.num_envs, STARTS), len(low)
    random = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    return torch.from_numpy(low + (high - low) * random).to(engine.device)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())
