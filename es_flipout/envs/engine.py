"""The contract of a physics engine: N simulations of one model, and live views of their fields.

An engine knows nothing of tasks. It steps the simulations it is told to and keeps the fields that were
asked for current after every call; on the CPU the same calls give the same numbers at any thread count.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int32]


class PhysicsEngine(ABC):
    """N simulations of `model`.

    Attributes:
        model: the MuJoCo model, shared by all simulations.
        num_envs: N.
        device: where fields and controls are.
        fields: live tensors [N, ...] over MjData fields, by their MjData names, float64 unless the engine
            says otherwise. They always hold what a loop over MjData would show after the same calls; the
            caller must not write to them.
        failures: what went wrong in the simulations that failed in the last call of `reset` or `step`, by
            simulation: a MuJoCo error, or a warning (of NaN, of huge values, of a full buffer). MuJoCo may
            have put such a simulation back to the model's defaults; it needs a reset.
    """

    model: mujoco.MjModel
    num_envs: int
    device: torch.device = torch.device("cpu")
    fields: Mapping[str, Tensor]
    failures: Mapping[int, str]

    @abstractmethod
    def reset(self, ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """Resets simulations to the model's defaults, sets their state, and runs mj_forward.

        Args:
            ids: the simulations, [M].
            qpos: their positions, [M, nq].
            qvel: their velocities, [M, nv].
        """

    @abstractmethod
    def step(self, ctrl: Tensor, num_substeps: int, ids: Ids | None = None) -> None:
        """Advances simulations by `num_substeps` calls of mj_step.

        Args:
            ctrl: controls of all N simulations, [N, nu], on the engine's device, held over the substeps.
            num_substeps: calls of mj_step.
            ids: the simulations that move, [M], sorted; all of them if None. The others are left alone.
        """

    def close(self) -> None:  # noqa: B027 - an engine may own nothing that needs closing
        """Ends the engine's threads, and frees what it holds of a device."""


def warning_text(counts: NDArray[np.integer]) -> str:
    """Returns what MuJoCo's warning counters, one for each mjtWarning, complain of."""
    names = [mujoco.mjtWarning(int(kind)).name.removeprefix("mjWARN_") for kind in np.flatnonzero(counts)]
    return f"MuJoCo warning {' and '.join(names)}"


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
