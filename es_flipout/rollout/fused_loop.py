"""The step loop of native environments with small policies on the CPU: all but the physics is compiled.

A step is three calls: all policies, MuJoCo, and what the task makes of it. Only when an episode ends does
Python look at single envs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from typing_extensions import override

from es_flipout.envs.mujoco import MujocoVectorEnv
from es_flipout.population import Population
from es_flipout.rollout.forward_kernels import add_up
from es_flipout.rollout.fused_rows import FusedRows
from es_flipout.rollout.moments import Ints
from es_flipout.rollout.step_loop import StepLoop


class FusedLoop(StepLoop):
    """Envs of a `fused` environment, in which members of a policy that `is_fusible` play."""

    env: MujocoVectorEnv

    def __init__(
        self,
        env: MujocoVectorEnv,
        population: Population,
        *,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Sets up the loop without starting any episode.

        Args:
            env: whose envs they are.
            population: whose members play.
            lock: see `StepLoop`.
        """
        super().__init__(env, lock=lock)
        assert env.fused is not None
        assert self._moments is not None
        num_envs = env.num_envs
        self._rows = FusedRows(population, num_envs)
        self._live = np.zeros(num_envs, np.bool_)
        self._rewards, self._sums = env.fused.rewards, self._returns.numpy()
        self._run_rows = self._rows.bind(
            self._live, env.fused.observations, self._moments.numpy(), env.fused.actions, env.fused.controls
        )

    @override
    def _advance(self) -> None:
        self._act()
        num_ended, info = self.env.advance()
        self.spent_steps += self.env.num_envs
        reached = add_up(self._live, self._rewards, self._sums, self._lengths, self._limit or 0)
        if num_ended or reached:
            ended = self.env.ended
            if reached:
                self._retire_at_limit(ended)
            self._continue(ended, info)
        elif self._waiting and self._num_live < self.env.num_envs:
            self._refill()

    def _act(self) -> None:
        """Has live envs' members choose their actions."""
        self._run_rows()

    @override
    def _hand_over(self, changed: Ints) -> None:
        np.greater_equal(self._row, 0, out=self._live)
        if len(changed):
            self._rows.assign(changed, self._member[changed])
