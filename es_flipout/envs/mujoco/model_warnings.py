"""Keeps MuJoCo's deprecation notices about Gymnasium's own model files off the terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import mujoco


def _forward(message: str) -> None:
    if "is deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def deprecations_silenced() -> Iterator[None]:
    """While a model compiles, drops deprecation notices and turns other MuJoCo warnings into Python's.

    The models are Gymnasium's, so users of this project cannot act on the notices.
    """
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_forward)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)
