"""Where a task's model comes from: a file, XML text, an `MjSpec` or an `MjModel`; it can be compiled anew."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import mujoco
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

ModelLike: TypeAlias = "str | os.PathLike[str] | mujoco.MjSpec | mujoco.MjModel"
"""A path, a name among Gymnasium's assets, XML text, or one of MuJoCo's own objects."""
_FOUND, _ONE = 1, 1
"""Of a contact sensor: its data is the number of contacts, and it reports on one."""


class ModelSource:
    """A model that compiles, and what sensors were added to it."""

    def __init__(self, source: ModelLike) -> None:
        """Takes where the model comes from.

        Args:
            source: see `ModelLike`. Text is XML if it contains "<mujoco", else a path.

        Raises:
            TypeError: if it is anything else.
            OSError: if there is no such file.
        """
        self._source: Any = _located(source)
        self._pairs: list[tuple[str, str]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns the same source, which no copy of a task changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Returns what can be pickled: an `MjSpec` cannot, and is not needed once the model is compiled."""
        source = None if isinstance(self._source, mujoco.MjSpec) else self._source
        return {**self.__dict__, "_source": source}

    def compile(self) -> mujoco.MjModel:
        """Compiles the model.

        Raises:
            ValueError: if it does not compile.
        """
        if isinstance(self._source, mujoco.MjModel):
            return copy.copy(self._source)
        if isinstance(self._source, Path) and not self._pairs:
            return self._compiled(lambda: mujoco.MjModel.from_xml_path(str(self._source)))
        return self._compiled(lambda: self._spec().compile())

    def with_contact_sensors(self, pairs: Sequence[tuple[str, str]]) -> mujoco.MjModel:
        """Adds sensors that count the contacts of two geoms or bodies, and compiles the model anew.

        They are the last ones, in this order, so that nothing else moves.

        Raises:
            ValueError: if the source is an `MjModel`, or the new model does not compile.
        """
        if isinstance(self._source, mujoco.MjModel) or self._source is None:
            raise ValueError(
                "touching adds sensors to the model, which only a path, XML text or an MjSpec allows: give "
                "the task one of these instead of an MjModel, or add <contact> sensors to the MJCF and read "
                "them with sensor(NAME)"
            )
        before, self._pairs = self._pairs, [*self._pairs, *pairs]
        try:
            return self.compile()
        except ValueError:
            self._pairs = before
            raise

    def _spec(self) -> mujoco.MjSpec:
        """Returns a specification of its own, with the sensors that were added."""
        if isinstance(self._source, mujoco.MjSpec):
            spec = self._source.copy()
        elif isinstance(self._source, Path):
            spec = mujoco.MjSpec.from_file(str(self._source))
        else:
            spec = mujoco.MjSpec.from_string(self._source)
        for number, pair in enumerate(self._pairs):
            (type_1, name_1), (type_2, name_2) = (_contact_object(spec, name) for name in pair)
            sensor = spec.add_sensor(
                name=f"touching {number}: {pair[0]}, {pair[1]}",
                type=mujoco.mjtSensor.mjSENS_CONTACT,
                objtype=type_1,
                objname=name_1,
                reftype=type_2,
                refname=name_2,
            )
            sensor.intprm[:3] = [_FOUND, 0, _ONE]
        return spec

    def _compiled(self, compile_it: Any) -> mujoco.MjModel:
        try:
            with deprecations_silenced():
                return compile_it()
        except ValueError as error:
            name = str(self._source) if isinstance(self._source, Path) else "the model"
            raise ValueError(f"{name} does not compile: {' '.join(str(error).split())}") from error


def _contact_object(spec: mujoco.MjSpec, name: str) -> tuple[Any, str]:
    """Returns the type and the name of a geom, or of a body, that a contact sensor can name."""
    if spec.geom(name) is not None:
        return mujoco.mjtObj.mjOBJ_GEOM, name
    if spec.body(name) is not None:
        return mujoco.mjtObj.mjOBJ_BODY, name
    names: Sequence[str] = [each.name for each in (*spec.geoms, *spec.bodies) if each.name]
    raise ValueError(f"the model has no geom and no body {name!r}; it has {', '.join(map(repr, names))}")


def _located(source: ModelLike) -> Any:
    if isinstance(source, mujoco.MjModel):
        return source
    if isinstance(source, mujoco.MjSpec):
        return source.copy()
    if isinstance(source, str) and "<mujoco" in source:
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "a model must be the path of an MJCF file, XML text, a mujoco.MjSpec or a mujoco.MjModel, "
            f"got {source!r}"
        )
    try:
        path = expand_model_path(os.fspath(source))
    except OSError as error:
        raise OSError(
            f"{error} (names that begin neither with / nor with . are Gymnasium's models)"
        ) from error
    if Path(path).is_dir():
        raise OSError(f"the model must be an MJCF file, but {path} is a folder")
    return Path(path)
