"""Physics on a pool of Python threads, one MjData per thread, for tasks that need contact forces.

After the last substep it calls mj_rnePostConstraint on the same MjData, exactly where Gymnasium does, so
cfrc_ext equals Gymnasium's. An env is stored as its mjSTATE_INTEGRATION vector: a thread loads it, steps
with the GIL released, and saves it together with the requested fields.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.engines.contract import Ids, PhysicsEngine, warning_text
from es_flipout.processes import available_cores

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_CHUNK = 4
"""Envs that a thread takes at a time: few, so that the threads finish together."""


def _state_slice(model: mujoco.MjModel, component: mujoco.mjtState) -> slice:
    """Returns where `component` is in an mjSTATE_INTEGRATION vector, whose components are in bit order."""
    below = int(_STATE) & (int(component) - 1)
    start = mujoco.mj_stateSize(model, below)
    return slice(start, start + mujoco.mj_stateSize(model, component))


class _Thread:
    """A thread's MjData, and the arrays that its fields are copied to."""

    def __init__(
        self,
        model: mujoco.MjModel,
        states: NDArray[np.float64],
        copied: Mapping[str, NDArray[np.float64]],
        varied: Mapping[str, NDArray[Any]],
    ) -> None:
        self.model = copy.copy(model) if varied else model
        self.varied = [(getattr(self.model, name), array) for name, array in varied.items()]
        self.states = states
        self.copied = copied
        self.renew()

    def renew(self) -> None:
        """Replaces the MjData, which cannot be trusted after an error."""
        self.data = mujoco.MjData(self.model)
        self.copies = [(array, getattr(self.data, name)) for name, array in self.copied.items()]
        self.warnings = self.data.warning.number
        self.no_warnings = self.warnings.tobytes()

    def become(self, i: int) -> None:
        """Gives the model the values that env i has for itself."""
        for value, of_envs in self.varied:
            value[:] = of_envs[i]

    def step(self, i: int, num_substeps: int) -> str | None:
        """Advances env i; returns what went wrong, if anything."""
        self.become(i)
        mujoco.mj_setState(self.model, self.data, self.states[i], _STATE)
        try:
            mujoco.mj_step(self.model, self.data, num_substeps)
            mujoco.mj_rnePostConstraint(self.model, self.data)
        except mujoco.FatalError as error:
            self.renew()
            return f"MuJoCo error: {error}"
        self.save(i)
        return self.take_warnings()

    def reset(self, i: int, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> str | None:
        """Resets env i; returns what went wrong, if anything."""
        self.become(i)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        mujoco.mj_checkPos(self.model, self.data)
        mujoco.mj_checkVel(self.model, self.data)
        try:
            mujoco.mj_forward(self.model, self.data)
        except mujoco.FatalError as error:
            self.renew()
            return f"MuJoCo error: {error}"
        self.save(i)
        return self.take_warnings()

    def take_warnings(self) -> str | None:
        if self.warnings.tobytes() == self.no_warnings:
            return None
        text = warning_text(self.warnings)
        self.warnings[:] = 0
        return text

    def save(self, i: int) -> None:
        mujoco.mj_getState(self.model, self.data, self.states[i], _STATE)
        for array, value in self.copies:
            array[i] = value


class MjDataPoolEngine(PhysicsEngine):
    """N envs on a thread pool, with mj_rnePostConstraint after every step."""

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        fields: Sequence[str],
        threads: int | None = None,
        varied: Sequence[str] = (),
    ) -> None:
        """Creates the pool; see `BatchEngine` for the arguments."""
        self.model = model
        self.num_envs = num_envs
        states = np.zeros((num_envs, mujoco.mj_stateSize(model, _STATE)))
        in_state = {
            "qpos": states[:, _state_slice(model, mujoco.mjtState.mjSTATE_QPOS)],
            "qvel": states[:, _state_slice(model, mujoco.mjtState.mjSTATE_QVEL)],
            "time": states[:, _state_slice(model, mujoco.mjtState.mjSTATE_TIME)][:, 0],
        }
        template = mujoco.MjData(model)
        copied = {
            name: np.zeros((num_envs, *getattr(template, name).shape))
            for name in fields
            if name not in in_state
        }
        self.failures: dict[int, str] = {}
        self.fields = {name: torch.from_numpy(copied.get(name, in_state.get(name))) for name in fields}
        self._varied = {
            name: np.repeat(getattr(model, name)[np.newaxis], num_envs, axis=0) for name in varied
        }
        self._states = states
        self._threads = [
            _Thread(model, states, copied, self._varied) for _ in range(threads or available_cores())
        ]
        self._pool = ThreadPoolExecutor(len(self._threads), "physics")
        for i in range(num_envs):
            self._threads[0].save(i)

    @override
    def input(self, name: str) -> Tensor:
        component = getattr(mujoco.mjtState, f"mjSTATE_{name.upper()}")
        values = torch.from_numpy(self._states[:, _state_slice(self.model, component)])
        return values.view(self.num_envs, -1, 6) if name == "xfrc_applied" else values

    @override
    def reset(
        self,
        ids: Ids,
        qpos: NDArray[np.float64],
        qvel: NDArray[np.float64],
        model: Mapping[str, NDArray[Any]] = {},
    ) -> None:
        for name, values in model.items():
            self._varied[name][ids] = values
        self._distribute(ids.tolist(), lambda thread, i, k: thread.reset(i, qpos[k], qvel[k]))

    @override
    def step(self, ctrl: Tensor | None, num_substeps: int, ids: Ids | None = None) -> None:
        if ctrl is not None:
            self.input("ctrl").copy_(ctrl)
        all_or_some = range(self.num_envs) if ids is None else ids.tolist()
        self._distribute(all_or_some, lambda thread, i, k: thread.step(i, num_substeps))

    def _distribute(self, ids: Sequence[int], work: Callable[[_Thread, int, int], str | None]) -> None:
        """Calls `work` for each env i, the k-th of `ids`, in chunks, on whichever thread is free."""
        self.failures = {}
        count, chunks = len(ids), itertools.count()

        def run(thread: _Thread) -> None:
            # next() on a shared iterator is atomic, so each chunk is taken by one thread.
            while (start := next(chunks) * _CHUNK) < count:
                for k in range(start, min(start + _CHUNK, count)):
                    failure = work(thread, ids[k], k)
                    if failure is not None:
                        self.failures[ids[k]] = failure

        helpers = self._threads[1 : math.ceil(count / _CHUNK)]
        futures = [self._pool.submit(run, thread) for thread in helpers]
        run(self._threads[0])
        for future in futures:
            future.result()

    @override
    def close(self) -> None:
        self._pool.shutdown()
