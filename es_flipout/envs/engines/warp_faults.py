"""What can go wrong in an env of engine warp: bits, found on the device, and their text for the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_VALUE = 1e10
"""Larger values mean that the physics has blown up, as in MuJoCo (mjMAXVAL)."""

BAD_QPOS, BAD_QVEL, BAD_CTRL, CONTACTS_FULL, CONSTRAINTS_FULL, CONVEX_FULL, OTHER_FULL = (
    1 << bit for bit in range(7)
)
FAULTS = {
    BAD_QPOS: "MuJoCo warning BADQPOS",
    BAD_QVEL: "MuJoCo warning BADQVEL",
    BAD_CTRL: "MuJoCo warning BADCTRL",
    CONTACTS_FULL: "mujoco_warp has no room for so many contacts: raise nconmax in env.engine_kwargs",
    CONSTRAINTS_FULL: "mujoco_warp has no room for so many constraints: raise njmax in env.engine_kwargs",
    CONVEX_FULL: "mujoco_warp has no room for so many convex contacts: raise nccdmax in env.engine_kwargs",
    OTHER_FULL: "a buffer of fixed size in mujoco_warp was too small for the model",
}
"""What can go wrong in an env, by its bit in `WarpEngine.faults`."""


def fault_text(faults: int) -> str:
    """Returns what the bits of `WarpEngine.faults` mean."""
    return " and ".join(text for bit, text in FAULTS.items() if faults & bit)


class FaultDetector:
    """Looks for faults in the fields of N envs, without looking at them on the host."""

    def __init__(self, checked: Mapping[int, Tensor], overflow: Tensor, overflow_types: Any) -> None:
        """Takes live views of the fields.

        Args:
            checked: fields whose values must be finite and not huge, [N, ...], by the bit of their fault.
            overflow: `mujoco_warp.Data.overflow`, int32 [N].
            overflow_types: `mujoco_warp.OverflowType`.
        """
        self._checked = {bit: values for bit, values in checked.items() if values.shape[1]}
        self._bits = torch.tensor(list(self._checked), dtype=torch.int32, device=overflow.device)
        self._overflow = overflow
        self._fault_of_overflow = _overflow_table(overflow_types).to(overflow.device)

    def faults(self) -> Tensor:
        """Returns the faults of each env, bits of `FAULTS`, int32 [N]."""
        largest = torch.stack([values.abs().amax(dim=1) for values in self._checked.values()], dim=1)
        bad = (self._bits * ~(largest < MAX_VALUE)).sum(dim=1, dtype=torch.int32)
        return bad | self._fault_of_overflow[self._overflow.long()]


def _overflow_table(types: Any) -> Tensor:
    """Returns the fault that each value of `mujoco_warp.Data.overflow` means, int32."""
    known = {
        CONTACTS_FULL: int(types.BROADPHASE | types.NARROWPHASE),
        CONSTRAINTS_FULL: int(types.NEFC | types.NJMAX_NNZ),
        CONVEX_FULL: int(types.CCD),
    }
    # An iteration that stops at its limit is not a fault, nor is it one in MuJoCo.
    harmless = types.ITERATIONS | types.LS_ITERATIONS
    known[OTHER_FULL] = int(types.ALL & ~harmless) & ~sum(known.values())
    values = torch.arange(int(types.ALL) + 1, dtype=torch.int32)
    faults = [bit * (values & mask != 0).int() for bit, mask in known.items()]
    return torch.stack(faults).sum(dim=0, dtype=torch.int32)
