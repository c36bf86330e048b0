"""Tries a task's hooks once, before the first episode, for the mistakes that only values show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from es_flipout.envs.engines.contract import PhysicsEngine
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState
from es_flipout.envs.mujoco.start import Start, StartBatch
from es_flipout.envs.mujoco.task import Fields
from es_flipout.envs.mujoco.task_error import TaskError

STARTS = 3
"""Starts that the hooks are tried at: at all of them together, and at each alone."""


def try_task(task: CheckedTask, engine: PhysicsEngine, state: EnvState, *, info: bool) -> None:
    """Calls every hook as episodes will, with the physics of all envs at a start, where it is left.

    Args:
        task: the task.
        engine: runs its model, and shows the fields that it declares.
        state: of its envs.
        info: whether info entries will be wanted.

    Raises:
        TaskError: if a hook raises or returns what it must not, there or for another number of envs; if it
            draws two starts for one seed, writes to what it is given, or mixes the envs; or if no start is
            finite.
        ValueError: if the engine cannot run the model.
    """
    starts = [_drawn(task, seed) for seed in range(STARTS)]
    if not any(each.is_finite for each in starts):
        raise TaskError(f"{task.name}.initial_state returned no finite state for the seeds 0 to {STARTS - 1}")
    sample, actions = _sampled(engine, state, starts), _some_actions(task, engine)
    _call_hooks(task, state.fields, actions[: engine.num_envs], info)

    def called(envs: slice) -> _Results:
        fields = {name: each[envs] for name, each in sample.items()}
        try:
            return _call_hooks(task, fields, actions[:STARTS][envs], info)
        except TaskError as error:
            size = len(fields["qpos"])
            raise TaskError(f"{error} (in a call for N = {size}: hooks take any number of envs)") from error

    together, again = (called(slice(STARTS)) for _ in range(2))
    alone = [called(slice(i, i + 1)) for i in range(STARTS)]
    if not together["observe"].isfinite().all(dim=1).any():
        raise TaskError(f"{task.name}.observe returned NaN or infinity at every start")
    # Sums of several terms may differ in their last bits.
    tolerance = 1e-5 if sample["qpos"].dtype == torch.float64 else 1e-3
    for hook, one in together.items():
        # Hooks that add noise differ from call to call anyway.
        if _is_same(one, again[hook]) and not torch.allclose(
            one,
            torch.cat([each[hook] for each in alone]),
            rtol=tolerance,
            atol=tolerance / 10,
            equal_nan=True,
        ):
            raise TaskError(
                f"{task.name}.{hook} mixes the envs: what it returns for one depends on the others "
                "(sum, norm, mean and the like need dim=1)"
            )


_Results = dict[str, Tensor]
"""What hooks return, [N, ...] each, by their names."""


def _call_hooks(task: CheckedTask, fields: Fields, actions: Tensor, info: bool) -> _Results:
    """Calls the hooks of a step that moves nothing, with the fields that each may read."""
    declared = {name: fields[name] for name in task.field_names}
    given = {**fields, "actions": actions}
    kept = {name: each.clone() for name, each in given.items()}

    def check_unchanged(hook: str) -> None:
        for name, each in given.items():
            if not _is_same(each, kept[name]):
                raise TaskError(f"{task.name}.{hook} writes to {name!r}, which is not its own: use clone()")

    controls = task.control(declared, actions)
    check_unchanged("control")
    before = task.locate(declared).clone()
    check_unchanged("locate")
    for name in ("before", "after"):
        given[name], kept[name] = before.clone(), before
    reward, terms = task.reward(given["before"], given["after"], declared, actions)
    check_unchanged("reward")
    task.terminated(declared)
    check_unchanged("terminated")
    state = task.update_state(declared, actions)
    check_unchanged("update_state")
    after = {**declared, **state}
    observation = task.observe(declared, torch.float64)
    check_unchanged("observe")
    observation = torch.cat([observation, task.observe(after, torch.float64)], dim=1)
    if info:
        task.info({**fields, **state}, terms)
        check_unchanged("state_info")
    return {
        "control": _joined(controls, actions),
        "update_state": _joined(state, actions),
        "observe": observation,
        "reward": reward,
    }


def _joined(values: Mapping[str, Tensor], actions: Tensor) -> Tensor:
    """Returns values, [N, ...] each, side by side."""
    return torch.cat(
        [actions[:, :0].double(), *(each.reshape(len(each), -1).double() for each in values.values())], dim=1
    )


def _drawn(task: CheckedTask, seed: int) -> Start:
    """Returns the start of a seed."""
    start, again = (task.seeded_start(seed) for _ in range(2))
    if not start.equals(again):
        hooks = "initial_state and randomize" if task.is_randomized else "initial_state"
        raise TaskError(
            f"{task.name}.{hooks} must draw from the rng that it is given: "
            f"seed {seed} gave two different starts"
        )
    return start


def _sampled(engine: PhysicsEngine, state: EnvState, starts: list[Start]) -> dict[str, Tensor]:
    """Resets all envs; returns the fields at each of the starts."""
    num_envs, seen = engine.num_envs, []
    ids = np.arange(num_envs, dtype=np.int32)
    for first in range(0, STARTS, num_envs):
        chosen = StartBatch.of([starts[(first + i) % STARTS] for i in range(num_envs)])
        try:
            engine.reset(ids, chosen.qpos, chosen.qvel, chosen.model)
        except RuntimeError as error:  # the recording of Warp's graphs
            raise ValueError(f"the engine cannot run the model with {num_envs} envs: {error}") from error
        state.begin(ids, chosen)
        seen.append({name: each[:STARTS].clone() for name, each in state.fields.items()})
    return {name: torch.cat([each[name] for each in seen])[:STARTS] for name in seen[0]}


def _some_actions(task: CheckedTask, engine: PhysicsEngine) -> Tensor:
    """Returns different actions for all envs, and at least for every start."""
    low, high = task.action_range
    low, high = np.nan_to_num(low, neginf=-1.0), np.nan_to_num(high, posinf=1.0)
    shape = max(engine.num_envs, STARTS), len(low)
    random = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    return torch.from_numpy(low + (high - low) * random).to(engine.device)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())
