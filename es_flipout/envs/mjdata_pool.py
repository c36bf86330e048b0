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
from torch import Tensor

from es_flipout.envs.engine import Ids, PhysicsEngine, available_cores, warning_text

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
        self.states = states
        self.copied = copied
        self.renew()

    def renew(self) -> None:
        """Takes a fresh MjData: one in which an error was raised is not to be trusted."""
        self.data = mujoco.MjData(self.model)
        self.copies = [(array, getattr(self.data, name)) for name, array in self.copied.items()]
        self.warnings = self.data.warning.number
        self.no_warnings = self.warnings.tobytes()

    def step(self, i: int, num_substeps: int) -> str | None:
        """Advances simulation i; returns what went wrong."""
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
        """Starts simulation i; returns what went wrong."""
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
        self.failures: dict[int, str] = {}
        self.fields = {name: torch.from_numpy(copied.get(name, in_state.get(name))) for name in fields}
        self._workers = [_Worker(model, states, copied) for _ in range(threads or available_cores())]
        self._pool = ThreadPoolExecutor(len(self._workers), "physics")
        for i in range(num_envs):
            self._workers[0].save(i)

    def reset(self, ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """See `PhysicsEngine.reset`."""
        self._share_out(ids.tolist(), lambda worker, i, k: worker.reset(i, qpos[k], qvel[k]))

    def step(self, ctrl: Tensor, num_substeps: int, ids: Ids | None = None) -> None:
        """See `PhysicsEngine.step`."""
        self._ctrl[:] = ctrl.numpy()
        simulations = range(self.num_envs) if ids is None else ids.tolist()
        self._share_out(simulations, lambda worker, i, k: worker.step(i, num_substeps))

    def _share_out(self, simulations: Sequence[int], work: Callable[[_Worker, int, int], str | None]) -> None:
        """Does `work` for each simulation i (the k-th), a chunk at a time, on whichever worker is free."""
        self.failures = {}
        count, chunks = len(simulations), itertools.count()

        def run(worker: _Worker) -> None:
            # next() on a shared iterator is atomic, so each chunk is taken by one worker.
            while (start := next(chunks) * _CHUNK) < count:
                for k in range(start, min(start + _CHUNK, count)):
                    failure = work(worker, simulations[k], k)
                    if failure is not None:
                        self.failures[simulations[k]] = failure

        helpers = self._workers[1 : math.ceil(count / _CHUNK)]
        futures = [self._pool.submit(run, worker) for worker in helpers]
        run(self._workers[0])
        for future in futures:
            future.result()

    def close(self) -> None:
        """See `PhysicsEngine.close`."""
        self._pool.shutdown()
