"""Records what an environment asks of its physics engine, and repeats it on the bare engine.

The same simulations then take the same steps under the same controls, so that the ratio of the two times is
the price of everything around the physics, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.contract import Ids, PhysicsEngine

Model = Mapping[str, NDArray[Any]]
Reset = tuple[Ids, NDArray[np.float64], NDArray[np.float64], Model]
"""Arguments of `PhysicsEngine.reset`."""


NOMINAL: Model = MappingProxyType({})
"""No field of the model is an env's own."""


@dataclass(frozen=True)
class Episode:
    """One simulation from a reset on: where it starts, and its controls, [T, nu]."""

    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    ctrl: NDArray[np.floating]

    def play(self, model: mujoco.MjModel, data: mujoco.MjData, num_substeps: int) -> int:
        """Repeats it by a plain loop of `mj_step`; returns the env steps."""
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = self.qpos, self.qvel
        mujoco.mj_forward(model, data)
        for ctrl in self.ctrl:
            data.ctrl[:] = ctrl
            mujoco.mj_step(model, data, nstep=num_substeps)
        return len(self.ctrl)


@dataclass
class PhysicsCalls:
    """The calls of one engine of N simulations: each step, and the resets before it.

    Attributes:
        num_envs: N.
        num_substeps: calls of mj_step an env step.
    """

    num_envs: int
    num_substeps: int = 1
    resets: list[list[Reset]] = field(default_factory=list)
    steps: list[tuple[Tensor, Ids | None]] = field(default_factory=list)

    @classmethod
    def record(cls, engine: PhysicsEngine) -> PhysicsCalls:
        """Returns what notes, from now on, every call of `engine`."""
        calls = cls(engine.num_envs)
        pending: list[Reset] = []
        reset, step = engine.reset, engine.step

        def noting_reset(
            ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64], model: Model = NOMINAL
        ) -> None:
            pending.append((ids, qpos, qvel, model))
            reset(ids, qpos, qvel, model)

        def noting_step(ctrl: Tensor | None, num_substeps: int, ids: Ids | None = None) -> None:
            calls.num_substeps = num_substeps
            calls.resets.append(pending.copy())
            # Copies: the caller may use the same memory for the next step.
            used = (engine.input("ctrl") if ctrl is None else ctrl).clone()
            calls.steps.append((used, None if ids is None else ids.copy()))
            pending.clear()
            step(ctrl, num_substeps, ids)

        engine.reset, engine.step = noting_reset, noting_step  # type: ignore[method-assign]
        return calls

    @property
    def env_steps(self) -> int:
        """Steps of single simulations."""
        return sum(self.num_envs if ids is None else len(ids) for _, ids in self.steps)

    @property
    def num_resets(self) -> int:
        """Resets of single simulations."""
        return sum(len(reset[0]) for resets in self.resets for reset in resets)

    def episodes(self) -> list[Episode]:
        """Returns what each simulation did from one reset to the next, without episodes of no step."""
        found: list[tuple[NDArray[np.float64], NDArray[np.float64], list[Tensor]]] = []
        running: dict[int, list[Tensor]] = {}
        for resets, (ctrl, ids) in zip(self.resets, self.steps, strict=True):
            for begun, qpos, qvel, _ in resets:
                for i, env in enumerate(begun.tolist()):
                    running[env] = []
                    found.append((qpos[i], qvel[i], running[env]))
            for env in range(self.num_envs) if ids is None else ids.tolist():
                running[env].append(ctrl[env])
        return [Episode(qpos, qvel, np.stack(steps)) for qpos, qvel, steps in found if steps]

    def replay(self, model: mujoco.MjModel, threads: int | None) -> float:
        """Repeats the calls on `mujoco.batch`, without any output; returns the seconds it took."""
        varied = {name for resets in self.resets for reset in resets for name in reset[3]}
        engine = BatchEngine(model, self.num_envs, (), threads, sorted(varied))
        start = time.perf_counter()
        for resets, (ctrl, ids) in zip(self.resets, self.steps, strict=True):
            for reset in resets:
                engine.reset(*reset)
            engine.step(ctrl, self.num_substeps, ids)
        return time.perf_counter() - start
