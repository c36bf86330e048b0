"""Physics through `mujoco.batch`: MuJoCo's own C++ thread pool, at the full speed of the physics.

It shows the fields that mj_step computes. Contact forces on bodies (cfrc_ext) are not among them:
Gymnasium gets those from mj_rnePostConstraint after the last substep, and a batch step does not call it.
Tasks that need contact forces run on `mjdata_pool`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.engines.contract import Ids, PhysicsEngine, warning_text
from es_flipout.processes import available_cores


def _live_tensor(array: NDArray[np.float64]) -> Tensor:
    """Returns a tensor that shares the memory of `array`, which may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class BatchEngine(PhysicsEngine):
    """N envs in one `mujoco.batch.Batch`."""

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        fields: Sequence[str],
        threads: int | None = None,
        varied: Sequence[str] = (),
    ) -> None:
        """Creates the batch.

        Args:
            model: the MuJoCo model.
            num_envs: number of envs N.
            fields: names of the MjData fields to show.
            threads: number of physics threads; one per available core if None.
            varied: names of the MjModel fields that each env has for itself.
        """
        self.model = model
        self.num_envs = num_envs
        self._batch = Batch(model, num_envs, threads or available_cores())
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self.fields = {name: _live_tensor(self._batch.bind(name)) for name in fields}
        self.failures: dict[int, str] = {}
        self._warnings: NDArray[np.int32] = self._batch.warning[:, :, 1]
        self._varied = {name: self._batch.expand(name) for name in varied}

    @override
    def input(self, name: str) -> Tensor:
        return torch.from_numpy(self._batch.bind(name))

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
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._qpos[ids] = qpos
        self._qvel[ids] = qvel
        self._run(lambda: self._batch.forward(ids))

    @override
    def step(self, ctrl: Tensor | None, num_substeps: int, ids: Ids | None = None) -> None:
        if ctrl is not None:
            self._ctrl[:] = ctrl.numpy()
        self._run(lambda: self._batch.step(ids, nstep=num_substeps))

    def _run(self, call: Callable[[], None]) -> None:
        self.failures = {}
        try:
            call()
        except SimulationError as error:
            self.failures = {int(i): f"MuJoCo error: {self._batch.error(int(i))}" for i in error.ids}
        if self._warnings.any():
            for i in np.flatnonzero(self._warnings.any(axis=1)).tolist():
                self.failures.setdefault(i, warning_text(self._warnings[i]))
            self._warnings[:] = 0  # each is reported once

    @override
    def close(self) -> None:
        self.fields, self._varied = {}, {}
        del self._batch, self._qpos, self._qvel, self._ctrl, self._warnings
