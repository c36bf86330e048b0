"""What a task declares in its attributes: the fields that it reads, and the range of its actions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from mujoco.batch import DATA_FIELDS
from numpy.typing import NDArray

from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.task_error import TaskError

Bounds = tuple[NDArray[np.float32], NDArray[np.float32]]


def declared_fields(task: MujocoTask, attribute: str = "fields") -> tuple[str, ...]:
    """Returns the names of MjData fields in a task's `fields` or `info_fields`.

    Raises:
        TaskError: if it is not a sequence of such names.
    """
    if not isinstance(task, MujocoTask):
        raise TaskError(f"a task must be a MujocoTask, got {task!r}")
    name = f"{type(task).__name__}.{attribute}"
    given = getattr(task, attribute, None)
    if isinstance(given, str):
        raise TaskError(f"{name} is the string {given!r}: names of fields are in a tuple, ({given!r},)")
    if not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise TaskError(
            f'{name} must name the MjData fields that the task reads, as in ("qpos",), got {given!r}'
        )
    for each in given:
        if each not in DATA_FIELDS:
            close = difflib.get_close_matches(each, DATA_FIELDS)
            hint = (
                f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else "as qpos, xpos or sensordata are"
            )
            raise TaskError(f"{name}: {each!r} is not a field of MjData of fixed size ({hint})")
    return tuple(given)


def declared_action_range(task: MujocoTask, *, has_controls: bool) -> Bounds:
    """Returns the lowest and highest action, float32 [A]: infinite for actuators without ctrlrange.

    Args:
        task: the task.
        has_controls: whether it makes controls of actions itself.

    Raises:
        TaskError: if it declares a range that is none, or of as many numbers as no controls.
    """
    name, model = type(task).__name__, task.model
    if task.action_range is None:
        limited = model.actuator_ctrllimited.astype(np.bool_)
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        infinity = np.float32(np.inf)
        return np.where(limited, low, -infinity), np.where(limited, high, infinity)
    try:
        low, high = (np.asarray(each, np.float32) for each in task.action_range)
    except (TypeError, ValueError):
        low = high = np.zeros(0, np.float32)
    if low.ndim != 1 or low.shape != high.shape or not len(low) or not (low <= high).all():
        raise TaskError(
            f"{name}.action_range must be the lowest and the highest action, [A] each, "
            f"got {task.action_range!r}"
        )
    if not has_controls and len(low) != model.nu:
        raise TaskError(
            f"{name}.action_range is of {len(low)} numbers, the model has {model.nu} controls: write the "
            "hook control, which makes controls of actions"
        )
    return low, high
