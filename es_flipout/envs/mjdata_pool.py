"""Physics on a pool of Python threads, one MjData a thread, for tasks that need contact forces.

After the last substep it calls mj_rnePostConstraint on the very MjData that stepped, exactly where
Gymnasium does, so cfrc_ext is Gymnasium's. Every simulation is its mjSTATE_INTEGRATION row; a thread
loads a row, steps with the GIL released, and saves the row and the fields that were asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
        copied: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.states = states
        self.copies = [(array, getattr(self.data, name)) for name, array in copied.items()]

    def step(self, i: int, num_substeps: int) -> None:
        mujoco.mj_setState(self.model, self.data, self.states[i], _STATE)
        mujoco.mj_step(self.model, self.data, num_substeps)
        mujoco.mj_rnePostConstraint(self.model, self.data)
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
        self._workers = [_Worker(model, states, copied) for _ in range(threads or available_cores())]
        self._pool = ThreadPoolExecutor(len(self._workers), "physics")
        for i in range(num_envs):
            self._workers[0].save(i)

    def reset(self, ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """See `PhysicsEngine.reset`."""
        simulations = ids.tolist()
        self._share_out(len(ids), lambda worker, k: worker.reset(simulations[k], qpos[k], qvel[k]))

    def step(self, ctrl: NDArray[np.float64], num_substeps: int, ids: Ids | None = None) -> None:
        """See `PhysicsEngine.step`."""
        self._ctrl[:] = ctrl
        simulations = range(self.num_envs) if ids is None else ids.tolist()
        self._share_out(len(simulations), lambda worker, k: worker.step(simulations[k], num_substeps))

    def _share_out(self, count: int, work: Callable[[_Worker, int], None]) -> None:
        """Does `work` for 0 .. count - 1, a chunk at a time, on whichever worker is free."""
        chunks = itertools.count()

        def run(worker: _Worker) -> None:
            # next() on a shared iterator is atomic, so each chunk is taken by one worker.
            while (start := next(chunks) * _CHUNK) < count:
                for k in range(start, min(start + _CHUNK, count)):
                    work(worker, k)

        helpers = self._workers[1 : math.ceil(count / _CHUNK)]
        futures = [self._pool.submit(run, worker) for worker in helpers]
        run(self._workers[0])
        for future in futures:
            future.result()

    def close(self) -> None:
        """See `PhysicsEngine.close`."""
        self._pool.shutdown()
