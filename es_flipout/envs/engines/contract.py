"""The contract of a physics engine: N envs of one model, and live views of their MjData fields.

An engine knows nothing about tasks. It steps the envs it is told to step and keeps the requested fields
current after every call. On the CPU the same calls give the same numbers with any number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int32]

POST_CONSTRAINT = ("cfrc_ext", "cfrc_int", "cacc")
"""Fields that no step computes, but mj_rnePostConstraint, which Gymnasium calls after the last substep."""


class PhysicsEngine(ABC):
    """The physics of N envs that share `model`.

    Attributes:
        model: the MuJoCo model.
        num_envs: N.
        device: where fields and controls are.
        fields: live tensors [N, ...] over MjData fields, by their MjData names, float64 unless the engine
            says otherwise. They always hold what a loop over MjData would show after the same calls; the
            caller must not write to them.
        failures: what went wrong in the envs that failed in the last call of `reset` or `step`, by env: a
            MuJoCo error or warning (NaN, huge values, a full buffer). MuJoCo may have reset such an env to
            the model's defaults, so it must be reset before it is used again.
    """

    model: mujoco.MjModel
    num_envs: int
    device: torch.device = torch.device("cpu")
    fields: Mapping[str, Tensor]
    failures: Mapping[int, str]

    @abstractmethod
    def reset(
        self,
        ids: Ids,
        qpos: NDArray[np.float64],
        qvel: NDArray[np.float64],
        model: Mapping[str, NDArray[Any]] = {},
    ) -> None:
        """Resets envs to the model's defaults, sets their state, and runs mj_forward.

        Args:
            ids: the envs to reset, [M].
            qpos: their positions, [M, nq].
            qvel: their velocities, [M, nv].
            model: their own values of the MjModel fields that the engine was made to vary, [M, ...] each;
                what is missing stays as it is.
        """

    @abstractmethod
    def input(self, name: str) -> Tensor:
        """Returns a live tensor over ctrl [N, nu], qfrc_applied [N, nv] or xfrc_applied [N, nbody, 6].

        It is to be written to before a step, and 0 after a reset.
        """

    @abstractmethod
    def step(self, ctrl: Tensor | None, num_substeps: int, ids: Ids | None = None) -> None:
        """Advances envs by `num_substeps` calls of mj_step.

        Args:
            ctrl: controls of all N envs, [N, nu], on the engine's device, held constant over the substeps;
                None for those in `input("ctrl")`.
            num_substeps: number of mj_step calls.
            ids: the envs to step, [M], sorted; all of them if None. The others are left alone.
        """

    def close(self) -> None:  # noqa: B027 - an engine may own nothing that needs closing
        """Stops the engine's threads and frees its device memory."""


def warning_text(counts: NDArray[np.integer]) -> str:
    """Returns the names of the MuJoCo warnings whose counters, one per mjtWarning, are not zero."""
    names = [mujoco.mjtWarning(int(kind)).name.removeprefix("mjWARN_") for kind in np.flatnonzero(counts)]
    return f"MuJoCo warning {' and '.join(names)}"
