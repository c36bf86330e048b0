"""The border to a task's chance: what it draws at the start of an episode is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from gymnasium.utils import seeding
from mujoco.batch import DATA_FIELDS, MODEL_FIELDS
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.described import described
from es_flipout.envs.mujoco.model_variants import ModelVariants, nominal_field
from es_flipout.envs.mujoco.start import Start
from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.task_error import TaskError, call_hook

Floats = NDArray[np.float64]
_TAKEN = DATA_FIELDS | MODEL_FIELDS | {"noise"}
"""Names that mean something else among the fields, or in what `randomize` returns."""


def is_randomizable(task: MujocoTask) -> bool:
    """Returns whether a task has a randomization: the hook, or noise."""
    return type(task).randomize is not MujocoTask.randomize or task.noise > 0


class CheckedStarts:
    """Draws the starts of episodes.

    Attributes:
        state: shapes of the entries of the episodes' own state, by name, as in the start of seed 0.
        varied: names of the MjModel fields that differ from episode to episode.
    """

    def __init__(self, task: MujocoTask, *, randomize: bool) -> None:
        """Draws the start of seed 0, with which all others must agree.

        Args:
            task: the task.
            randomize: whether `randomize` is called.

        Raises:
            TaskError: if it is not what it must be.
        """
        self._task, self._randomize = task, randomize
        noise = task.noise
        if not isinstance(noise, int | np.integer) or isinstance(noise, bool) or noise < 0:
            raise TaskError(f"{self._name}.noise must be an integer >= 0, got {noise!r}")
        self._variants: ModelVariants | None = None
        self.state: dict[str, tuple[int, ...]] = {}
        self.varied: tuple[str, ...] = ()
        rng = seeding.np_random(0)[0]
        _, _, state = self._initial_state(rng)
        self.state = {name: value.shape for name, value in state.items()}
        drawn = {name: value for name, value in self._changes(rng).items() if name not in self.state}
        if drawn:
            self._variants = ModelVariants(task.model, drawn)
            self.varied = self._variants.names
            self._drawn = tuple(drawn)

    @property
    def _name(self) -> str:
        return type(self._task).__name__

    def draw(self, rng: np.random.Generator) -> Start:
        """Returns the start that a generator gives: state, then randomization, then the key of the noise.

        Raises:
            TaskError: if the task raises, or returns what it must not.
        """
        qpos, qvel, state = self._initial_state(rng)
        if state.keys() != self.state.keys():
            self._refuse("initial_state", f"began the state {list(self.state)} before, now {list(state)}")
        changes = self._changes(rng)
        drawn = {name: changes.pop(name) for name in [*changes] if name not in self.state}
        for name, value in {**state, **changes}.items():
            if value.shape != self.state[name]:
                hook = "randomize" if name in changes else "initial_state"
                self._refuse(
                    hook, f"gave {name!r} the shape {self.state[name]} before, now {described(value)}"
                )
        key = int(rng.integers(2**63)) if self._randomize and self._task.noise else 0
        return Start(qpos, qvel, {**state, **changes}, self._model(drawn), key)

    def broken(self) -> Start:
        """Returns a start without positions, of the nominal model."""
        model = self._task.model
        state = {name: np.zeros(shape) for name, shape in self.state.items()}
        return Start(np.full(model.nq, np.nan), np.zeros(model.nv), state, self._model({}), 0)

    def _model(self, drawn: Mapping[str, Floats]) -> Mapping[str, Floats]:
        if self._variants is None:
            if drawn:
                self._refuse("randomize", f"varies {', '.join(drawn)}, but did not for seed 0")
            return {}
        if unknown := [name for name in drawn if name not in self._drawn]:
            self._refuse("randomize", f"varies {', '.join(unknown)}, but did not for seed 0")
        try:
            return self._variants.complete(drawn)
        except ValueError as error:
            raise TaskError(f"{self._name}.randomize: {error}") from error

    def _initial_state(self, rng: np.random.Generator) -> tuple[Floats, Floats, dict[str, Floats]]:
        given, model = call_hook(self._task, "initial_state", rng), self._task.model
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            self._refuse(
                "initial_state",
                f"must return qpos [{model.nq}] and qvel [{model.nv}], got {described(given)}",
            )
        entries = given[2] if len(given) == 3 else {}
        if not isinstance(entries, Mapping):
            self._refuse("initial_state", f"must return the state as a dict, got {described(entries)}")
        state = {}
        for name, value in entries.items():
            if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
                self._refuse(
                    "initial_state",
                    f"may not name an entry of the state {name!r}: a name in Python is needed, and none of "
                    "MjData's or MjModel's fields",
                )
            state[str(name)] = self._numbers("initial_state", name, value)
        return (
            self._coordinates("qpos", given[0], model.nq),
            self._coordinates("qvel", given[1], model.nv),
            state,
        )

    def _changes(self, rng: np.random.Generator) -> dict[str, Floats]:
        """Returns what `randomize` draws, by name."""
        if not self._randomize:
            return {}
        given = call_hook(self._task, "randomize", rng)
        if not isinstance(given, Mapping):
            self._refuse("randomize", f"must return a dict of arrays, got {described(given)}")
        changes = {}
        for name, value in ((str(each), value) for each, value in given.items()):
            changes[name] = numbers = self._numbers("randomize", name, value)
            if name in self.state:
                continue
            try:
                shape = nominal_field(self._task.model, name).shape
            except ValueError as error:
                raise TaskError(f"{self._name}.randomize: {error}") from error
            if numbers.shape != shape:
                self._refuse("randomize", f"must give {name!r} whole, {list(shape)}, got {described(value)}")
        return changes

    def _coordinates(self, name: str, given: Any, size: int) -> Floats:
        values = _array(given)
        if values.dtype.kind not in "fiu" or values.shape != (size,):
            count = "nq" if name == "qpos" else "nv"
            self._refuse(
                "initial_state", f"must return {name} as {count} = {size} numbers, got {described(given)}"
            )
        return values.astype(np.float64)

    def _numbers(self, hook: str, name: str, given: Any) -> Floats:
        values = _array(given)
        if values.dtype.kind not in "fiub":
            self._refuse(hook, f"must give {name!r} as numbers, got {described(given)}")
        return values.astype(np.float64)

    def _refuse(self, hook: str, what: str) -> NoReturn:
        raise TaskError(f"{self._name}.{hook} {what}")


def _array(given: Any) -> NDArray[Any]:
    try:
        return np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except (ValueError, TypeError):
        return np.empty(0, dtype=object)  # of ragged lists
