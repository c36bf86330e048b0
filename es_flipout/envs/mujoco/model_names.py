"""Where the parts of a model are in MjData's fields, by their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import mujoco

_OBJECTS = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "joint": mujoco.mjtObj.mjOBJ_JOINT,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "sensor": mujoco.mjtObj.mjOBJ_SENSOR,
    "keyframe": mujoco.mjtObj.mjOBJ_KEY,
}
_COUNTS = {
    "body": "nbody",
    "geom": "ngeom",
    "site": "nsite",
    "joint": "njnt",
    "actuator": "nu",
    "sensor": "nsensor",
    "keyframe": "nkey",
}
_QPOS_SIZES, _QVEL_SIZES = (7, 4, 1, 1), (6, 3, 1, 1)
"""Numbers of free, ball, slide and hinge joints."""


def index_of(model: mujoco.MjModel, kind: str, name: int | str) -> int:
    """Returns the index of a part.

    Args:
        model: the model.
        kind: "body", "geom", "site", "joint", "actuator", "sensor" or "keyframe".
        name: its name, or the index itself.

    Raises:
        ValueError: if the model has no such part.
    """
    count = getattr(model, _COUNTS[kind])
    i = int(name) if not isinstance(name, str) else mujoco.mj_name2id(model, _OBJECTS[kind], name)
    if not 0 <= i < count:
        names = [mujoco.mj_id2name(model, _OBJECTS[kind], k) or "" for k in range(count)]
        known: Sequence[Any] = difflib.get_close_matches(str(name), names, n=1) or [n for n in names if n]
        raise ValueError(f"the model has no {kind} {name!r}; it has {', '.join(map(repr, known)) or 'none'}")
    return i


def sensor_slice(model: mujoco.MjModel, name: int | str) -> slice:
    """Returns where a sensor is in `sensordata`."""
    i = index_of(model, "sensor", name)
    start = int(model.sensor_adr[i])
    return slice(start, start + int(model.sensor_dim[i]))


def joint_slices(model: mujoco.MjModel, name: int | str) -> tuple[slice, slice]:
    """Returns where a joint is in `qpos` and in `qvel`."""
    i = index_of(model, "joint", name)
    kind, qpos, qvel = int(model.jnt_type[i]), int(model.jnt_qposadr[i]), int(model.jnt_dofadr[i])
    return slice(qpos, qpos + _QPOS_SIZES[kind]), slice(qvel, qvel + _QVEL_SIZES[kind])
