"""Models that differ from episode to episode: some fields drawn, and what MuJoCo derives from them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[Any]


def nominal_field(model: mujoco.MjModel, name: str) -> Floats:
    """Returns a field that may differ from episode to episode, as it is in the model.

    Raises:
        ValueError: if there is none of that name, or it is not of real numbers.
    """
    value = getattr(model, name, None) if name in MODEL_FIELDS else None
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        what = f"MjModel.{name} holds no real numbers" if isinstance(value, np.ndarray) else ""
        close = difflib.get_close_matches(name, MODEL_FIELDS)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "as body_mass is"
        raise ValueError(
            what or f"{name!r} is neither an entry of the state nor an array of MjModel ({hint})"
        )
    return value


class ModelVariants:
    """Completes the fields of an episode's model.

    Masses, inertias and the like have constants that MuJoCo computes when it compiles a model (mj_setConst);
    they are computed here, by MuJoCo in C, for every engine.

    Attributes:
        names: every field that differs: those that are drawn, then those that follow.
    """

    def __init__(self, model: mujoco.MjModel, drawn: Mapping[str, Floats]) -> None:
        """Takes the model, which stays as it is.

        Args:
            model: the nominal model.
            drawn: one draw of each field that differs.
        """
        self._nominal = {name: nominal_field(model, name).copy() for name in drawn}
        self._follow: dict[str, Numbers] = {}
        if not _has_constants(drawn):
            self.names = tuple(drawn)
            return
        self._model = copy.copy(model)
        self._data = mujoco.MjData(self._model)
        before = _numeric_fields(self._model)
        self._set({name: _moved(model, name, value) for name, value in self._nominal.items()})
        after = _numeric_fields(self._model)
        self._follow = {
            name: value
            for name, value in before.items()
            if name not in drawn and not np.array_equal(value, after[name])
        }
        self.names = (*drawn, *self._follow)

    def complete(self, drawn: Mapping[str, Floats]) -> dict[str, Numbers]:
        """Returns all fields that differ, given those that an episode has drawn; the others are nominal.

        Raises:
            ValueError: if MuJoCo cannot derive constants from them.
        """
        fields = {name: drawn.get(name, nominal) for name, nominal in self._nominal.items()}
        if not self._follow:
            return dict(fields)
        self._set(fields)
        return {**fields, **{name: getattr(self._model, name).copy() for name in self._follow}}

    def _set(self, fields: Mapping[str, Floats]) -> None:
        for name, value in fields.items():
            getattr(self._model, name)[:] = value
        try:
            mujoco.mj_setConst(self._model, self._data)
        except mujoco.FatalError as error:
            raise ValueError(f"MuJoCo cannot use these fields: {error}") from error


def _moved(model: mujoco.MjModel, name: str, nominal: Floats) -> Floats:
    """Returns other values of a field, for which all constants that follow from it change.

    The inertial frames of "simple" bodies stay: MuJoCo has compiled in that they are those of the bodies.
    """
    moved: Floats = nominal * 1.125 + 0.125
    if name in ("body_ipos", "body_iquat"):
        moved = np.where(model.body_simple[:, np.newaxis] > 0, nominal, moved)
    return moved


def _has_constants(names: Mapping[str, Any]) -> bool:
    """Returns whether MuJoCo derives constants from one of some fields."""
    inputs = getattr(mujoco.MjModel, "_setconst_inputs", None)
    return inputs is None or not set(names).isdisjoint(inputs)


def _numeric_fields(model: mujoco.MjModel) -> dict[str, Numbers]:
    """Returns copies of all arrays of numbers: some constants are integers, as body_sameframe is."""
    values = {name: getattr(model, name, None) for name in sorted(MODEL_FIELDS)}
    return {
        name: value.copy()
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    }
