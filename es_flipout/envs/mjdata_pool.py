"""Physics on a pool of Python threads, one MjData a thread, for tasks that need contact forces.

After the last substep it calls mj_rnePostConstraint on the very MjData that stepped, exactly where
Gymnasium does, so cfrc_ext is Gymnasium's. Every simulation is its mjSTATE_INTEGRATION row; a thread
loads a row, steps with the GIL released, and saves the row and the fields that were asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from es_flipout.envs.engine import Ids, PhysicsEngine, available_cores

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_CHUNK = 4
"""Simulations a thread takes at a time: small, so that the threads finish together."""


def _state_slice(model: mujoco.MjModel, component: mujoco.mjtState) -> slice:
    """Returns where `component` lies in an mjSTATE_INTEGRATION row: components are ordered by their bit."""
    below = int(_STATE) & (int(component) - 1)
    start = mujoco.mj_stateSize(model, below)
    return slice(start, start + mujoco.mj_stateSize(model, component))


class _Worker:
    """One thread's MjData, and the places its fields are copied to."""

    def __init__(
        self,
        model: mujoco.MjModel,
        states: NDArray[np.float64],
        copied: dict[str, NDArray[np.float64]],
    ) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.states = states
        self.copies = [(array, getattr(self.data, name)) for name, array in copied.items()]

    def step(self, ids: Sequence[int], num_substeps: int, chunks: Iterator[int]) -> None:
        model, data, states = self.model, self.data, self.states
        # next() on a shared iterator is atomic, so each chunk is taken by one thread.
        while (start := next(chunks) * _CHUNK) < len(ids):
            for i in ids[start : start + _CHUNK]:
                mujoco.mj_setState(model, data, states[i], _STATE)
                mujoco.mj_step(model, data, num_substeps)
                mujoco.mj_rnePostConstraint(model, data)
                self.save(i)

    def reset(self, i: int, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        mujoco.mj_forward(self.model, self.data)
        self.save(i)

    def save(self, i: int) -> None:
        mujoco.mj_getState(self.model, self.data, self.states[i], _STATE)
        for array, value in self.copies:
            array[i] = value


class MjDataPoolEngine(PhysicsEngine):
    """N simulations on a thread pool, with mj_rnePostConstraint after every step."""

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, fields: Sequence[str], threads: int | None = None
    ) -> None:
        """Creates the pool; see `BatchEngine` for the arguments."""
        self.model = model
        self.num_envs = num_envs
        states = np.zeros((num_envs, mujoco.mj_stateSize(model, _STATE)))
        self._ctrl = states[:, _state_slice(model, mujoco.mjtState.mjSTATE_CTRL)]
        in_state = {
            "qpos": states[:, _state_slice(model, mujoco.mjtState.mjSTATE_QPOS)],
            "qvel": states[:, _state_slice(model, mujoco.mjtState.mjSTATE_QVEL)],
        }
        template = mujoco.MjData(model)
        copied = {
            name: np.zeros((num_envs, *getattr(template, name).shape))
            for name in fields
            if name not in in_state
        }
        self.fields = {name: torch.from_numpy(copied.get(name, in_state.get(name))) for name in fields}
        self._all = range(num_envs)
        self._workers = [_Worker(model, states, copied) for _ in range(threads or available_cores())]
        self._pool = ThreadPoolExecutor(len(self._workers), "physics")

    def reset(self, ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """See `PhysicsEngine.reset`."""
        for row, i in enumerate(ids.tolist()):
            self._workers[0].reset(i, qpos[row], qvel[row])

    def step(self, ctrl: NDArray[np.float64], num_substeps: int, ids: Ids | None = None) -> None:
        """See `PhysicsEngine.step`."""
        self._ctrl[:] = ctrl
        moving = self._all if ids is None else ids.tolist()
        chunks = itertools.count()
        futures = [
            self._pool.submit(worker.step, moving, num_substeps, chunks) for worker in self._workers[1:]
        ]
        self._workers[0].step(moving, num_substeps, chunks)
        for future in futures:
            future.result()

    def close(self) -> None:
        """See `PhysicsEngine.close`."""
        self._pool.shutdown()
