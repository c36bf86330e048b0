"""Records what an environment asks of its physics engine, and repeats it on the bare engine.

The same simulations then take the same steps under the same controls, so that the ratio of the two times is
the price of everything around the physics, and nothing else.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
from numpy.typing import NDArray

from es_flipout.envs.batch import BatchEngine
from es_flipout.envs.engine import Ids, PhysicsEngine

Reset = tuple[Ids, NDArray[np.float64], NDArray[np.float64]]
"""Arguments of `PhysicsEngine.reset`."""


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
    steps: list[tuple[NDArray[np.floating], Ids | None]] = field(default_factory=list)

    @classmethod
    def record(cls, engine: PhysicsEngine) -> PhysicsCalls:
        """Returns what notes, from now on, every call of `engine`."""
        calls = cls(engine.num_envs)
        pending: list[Reset] = []
        reset, step = engine.reset, engine.step

        def noting_reset(ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
            pending.append((ids, qpos, qvel))
            reset(ids, qpos, qvel)

        def noting_step(ctrl: NDArray[np.floating], num_substeps: int, ids: Ids | None = None) -> None:
            calls.num_substeps = num_substeps
            calls.resets.append(pending.copy())
            calls.steps.append((ctrl, ids))
            pending.clear()
            step(ctrl, num_substeps, ids)

        engine.reset, engine.step = noting_reset, noting_step  # type: ignore[method-assign]
        return calls

    @property
    def env_steps(self) -> int:
        """Steps of single simulations."""
        return sum(self.num_envs if ids is None else len(ids) for _, ids in self.steps)

    @classmethod
    def side_by_side(cls, parts: Sequence[PhysicsCalls]) -> PhysicsCalls:
        """Returns the calls of several engines as those of one that holds all their simulations."""
        whole = cls(sum(part.num_envs for part in parts), parts[0].num_substeps)
        offsets = [0, *itertools.accumulate(part.num_envs for part in parts)]
        for index in range(max(len(part.steps) for part in parts)):
            resets: list[Reset] = []
            ctrls: list[NDArray[np.floating]] = []
            ids: list[NDArray[np.integer]] = []
            for part, offset in zip(parts, offsets, strict=False):
                if index >= len(part.steps):
                    ctrls.append(np.zeros((part.num_envs, part.steps[0][0].shape[1])))
                    continue
                resets += [
                    ((rows + offset).astype(np.int32), qpos, qvel) for rows, qpos, qvel in part.resets[index]
                ]
                ctrl, live = part.steps[index]
                ctrls.append(ctrl)
                ids.append((np.arange(part.num_envs) if live is None else live) + offset)
            whole.resets.append(resets)
            rows = np.concatenate(ids).astype(np.int32)
            whole.steps.append((np.concatenate(ctrls), None if len(rows) == whole.num_envs else rows))
        return whole

    def replay(self, model: mujoco.MjModel, threads: int | None) -> float:
        """Repeats the calls on `mujoco.batch`, without any output; returns the seconds it took."""
        engine = BatchEngine(model, self.num_envs, (), threads)
        start = time.perf_counter()
        for resets, (ctrl, ids) in zip(self.resets, self.steps, strict=True):
            for reset in resets:
                engine.reset(*reset)
            engine.step(ctrl, self.num_substeps, ids)
        return time.perf_counter() - start
