"""What is wrong with a task, in one line, and the call of its hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from es_flipout.error_text import FOREIGN, OneLineError, error_text

if TYPE_CHECKING:
    from es_flipout.envs.mujoco.task import MujocoTask


class TaskError(OneLineError, ValueError):
    """A task is not what a task must be; the message names the task, the hook, and what is wrong."""


def call_hook(task: MujocoTask, hook: str, *args: Any) -> Any:
    """Calls a hook.

    Raises:
        TaskError: if it raises anything, which is the cause of the error.
    """
    try:
        return getattr(task, hook)(*args)
    except FOREIGN as error:
        raise TaskError(f"{type(task).__name__}.{hook}: {error_text(error)}") from error
