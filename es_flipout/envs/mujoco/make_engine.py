"""From a task and the name of an engine to the physics engine that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.contract import POST_CONSTRAINT, PhysicsEngine
from es_flipout.envs.engines.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.mujoco.declarations import declared_fields
from es_flipout.envs.mujoco.task import MujocoTask

ENGINES = ("batch", "mjdata_pool", "warp")
"""Every physics engine, by name."""


def cpu_engine(task: MujocoTask) -> Literal["batch", "mjdata_pool"]:
    """Returns the fastest engine on the CPU that can run a task."""
    fields = {*declared_fields(task), *declared_fields(task, "info_fields")}
    return "mjdata_pool" if fields.intersection(POST_CONSTRAINT) else "batch"


def make_engine(
    name: str,
    task: MujocoTask,
    num_envs: int,
    fields: Sequence[str],
    *,
    device: torch.device,
    threads: int | None,
    kwargs: Mapping[str, Any],
    varied: Sequence[str] = (),
) -> PhysicsEngine:
    """Makes an engine.

    Args:
        name: one of `ENGINES`.
        task: the task, whose model it runs.
        num_envs: number of envs N.
        fields: names of the MjData fields to show.
        device: device of engine "warp".
        threads: physics threads of the other engines; one per available core if None.
        kwargs: keyword arguments of `WarpEngine`.
        varied: names of the MjModel fields that each env has for itself.

    Raises:
        ValueError: if the engine cannot run the task, or a keyword argument is not valid.
    """
    parameters = inspect.signature(WarpEngine).parameters if name == "warp" else {}
    allowed = {key: each for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    for key, value in kwargs.items():
        if key not in allowed:
            hint = f"allowed: {', '.join(allowed)}" if allowed else "only engine 'warp' has any"
            raise ValueError(f"engine {name!r} has no keyword argument {key!r} ({hint})")
        if isinstance(allowed[key].default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{key} of engine {name!r} must be true or false, got {value!r}")
        elif type(value) is not int or value < 1:
            raise ValueError(f"{key} of engine {name!r} must be an integer >= 1, got {value!r}")
    if name == "warp":
        return WarpEngine(task.model, num_envs, fields, device, varied, **kwargs)
    if name == "mjdata_pool":
        return MjDataPoolEngine(task.model, num_envs, fields, threads, varied)
    if lacking := [each for each in POST_CONSTRAINT if each in fields]:
        raise ValueError(
            f"engine 'batch' has no contact forces ({', '.join(lacking)}), which the task reads: "
            "use 'mjdata_pool'"
        )
    return BatchEngine(task.model, num_envs, fields, threads, varied)
