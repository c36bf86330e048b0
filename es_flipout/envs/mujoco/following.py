"""What a camera follows: the body that may leave the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

AIMS = frozenset({"lookat", "type", "trackbodyid"})
"""Attributes of a `mujoco.MjvCamera` that say where it looks."""


def free_body(model: mujoco.MjModel) -> int | None:
    """Returns the index of the body with the first free joint; None if there is none."""
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value)
    return int(model.jnt_bodyid[free[0]]) if len(free) else None


def moving_body(model: mujoco.MjModel) -> int | None:
    """Returns the index of the first body that can go anywhere; None if all stay where they are.

    It has a free joint, or stands in the world on a slide joint without limits, as planar robots do.
    """
    slides = (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE.value) & (model.jnt_limited == 0)
    planar = np.flatnonzero(slides & (model.body_parentid[model.jnt_bodyid] == 0))
    body = free_body(model)
    return int(model.jnt_bodyid[planar[0]]) if body is None and len(planar) else body


def tracking_camera(model: mujoco.MjModel) -> int | None:
    """Returns the index of the model's first camera that moves along with a body; None if it has none."""
    tracks, tracks_mass = mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    found = np.flatnonzero(np.isin(model.cam_mode, [tracks.value, tracks_mass.value]))
    return int(found[0]) if len(found) else None


def follow_what_moves(env: gym.Env[Any, Any], kwargs: Mapping[str, Any]) -> None:
    """Has pictures of an official MuJoCo task follow what moves: from a camera of the model, or the free one.

    Gymnasium looks for the model's camera "track", and then takes the free camera in its place, for which
    alone `default_camera_config` holds. The `trackbodyid` in there has no effect on a free camera: pictures
    stay where the episode began.

    Args:
        env: any environment, of which no picture has been taken; nothing happens to others than Gymnasium's.
        kwargs: those that it was made with. A camera that they aim stays as it is, as does one that they or
            the environment's class name.
    """
    task = env.unwrapped
    config = kwargs.get("default_camera_config") or {}
    if not isinstance(task, MujocoEnv) or AIMS & config.keys():
        return
    if task.camera_id is not None or task.camera_name is not None:
        return
    body, renderer = moving_body(task.model), task.mujoco_renderer
    if body is None:
        return
    camera = None if config else tracking_camera(task.model)
    if camera is None:
        tracks = {"type": mujoco.mjtCamera.mjCAMERA_TRACKING, "trackbodyid": body}
        renderer.default_cam_config = {**(renderer.default_cam_config or {}), **tracks}
        renderer.camera_id = None  # -1 would make it a free camera again
    else:
        renderer.camera_id = camera
