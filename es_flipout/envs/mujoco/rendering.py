"""Pictures of a model's state, by Gymnasium's own renderer, so that they are the pictures of its tasks."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from numpy.typing import NDArray

from es_flipout.envs.mujoco.following import AIMS
from es_flipout.error_text import error_text

VARIABLE = "MUJOCO_GL"


class Camera:
    """Draws positions of a model's bodies; what draws is chosen, by MUJOCO_GL, at the first picture."""

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        width: int = 480,
        height: int = 480,
        camera_id: int | None = None,
        camera_name: str | None = None,
        default_camera_config: Mapping[str, Any] | None = None,
        max_geom: int = 1000,
        visual_options: Mapping[int, bool] | None = None,
        follow: int | None = None,
    ) -> None:
        """Takes the keyword arguments of Gymnasium's MuJoCo environments; the free camera is the default.

        Args:
            model: the model, whose off-screen buffer is enlarged if need be.
            width: of a picture in pixels.
            height: of a picture in pixels.
            camera_id: index of one of the model's cameras; -1 is the free camera.
            camera_name: its name, instead of its index.
            default_camera_config: attributes of the free camera, a `mujoco.MjvCamera`.
            max_geom: how many geoms a picture may have.
            visual_options: flags of `mujoco.MjvOption`, by their index.
            follow: index of a body over the ground that the free camera follows, if `default_camera_config`
                does not say where it looks.

        Raises:
            ValueError: if the model has no such camera, or a camera no such attribute.
        """
        names = [model.camera(k).name for k in range(model.ncam)]
        if camera_name is not None and camera_name not in names:
            close = difflib.get_close_matches(camera_name, names, n=1) or names
            raise ValueError(
                f"the model has no camera {camera_name!r}; it has {', '.join(map(repr, close)) or 'none'}"
            )
        if camera_id is not None and not -1 <= camera_id < model.ncam:
            raise ValueError(f"camera_id must be in [-1, {model.ncam}), got {camera_id}")
        for name, size in (("width", width), ("height", height)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {size!r}")
        for name in default_camera_config or ():
            if not hasattr(mujoco.MjvCamera(), name):
                raise ValueError(f"default_camera_config: a mujoco.MjvCamera has no attribute {name!r}")
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._model, self._data = model, mujoco.MjData(model)
        self._has_drawn = False
        is_free = camera_name is None and camera_id in (None, -1)
        aims = AIMS.intersection(default_camera_config or ())
        self._follow = follow if is_free and not aims else None
        self._renderer = MujocoRenderer(
            model,
            self._data,
            dict(default_camera_config) if default_camera_config else None,
            width,
            height,
            max_geom,
            camera_id,
            camera_name,
            dict(visual_options) if visual_options else None,
        )

    def picture(self, qpos: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Draws the bodies at positions [nq]; returns uint8 [height, width, 3].

        Raises:
            RuntimeError: if nothing here can draw; the message is one line.
        """
        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._model, self._data)
        if self._has_drawn:
            self._aim()
            return self._drawn()
        with _backend() as name:
            try:
                first = self._drawn()
                if self._follow is None:
                    return first
                self._aim()
                return self._drawn()
            except Exception as error:  # the drivers fail in many ways
                text = error_text(error)
                _forget(error)
            raise RuntimeError(
                f"OpenGL cannot draw here with {VARIABLE}={name}: {text} (set {VARIABLE} to egl, osmesa or "
                "glfw; egl and osmesa need no display)"
            )

    def _drawn(self) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = self._renderer.render("rgb_array")
        self._has_drawn = True
        return frame

    def _aim(self) -> None:
        """Has the free camera look at the body that it follows; its viewer is made by the first picture."""
        if self._follow is not None:
            viewer: Any = self._renderer.viewer
            viewer.cam.lookat[:2] = self._data.xpos[self._follow, :2]

    def close(self) -> None:
        """Frees what drew."""
        self._renderer.close()  # type: ignore[no-untyped-call]


def lacks_display() -> bool:
    """Returns whether no window can be opened here."""
    return sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


@contextlib.contextmanager
def _backend() -> Iterator[str]:
    """Chooses EGL if there is no display and no choice of the user: what Gymnasium tries first would fail."""
    chosen = os.environ.get(VARIABLE)
    if chosen is None and lacks_display():
        os.environ[VARIABLE] = "egl"
    try:
        yield os.environ.get(VARIABLE, "")
    finally:
        if chosen is None:
            os.environ.pop(VARIABLE, None)


def _forget(error: BaseException) -> None:
    """Frees a half-made viewer of Gymnasium's, whose destructor raises what Python would print."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook
