"""The fastest step loop for an environment and a policy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.mujoco import MujocoVectorEnv
from es_flipout.population import Population
from es_flipout.rollout.host_loop import HostLoop
from es_flipout.rollout.mlp_rows import member_rows
from es_flipout.rollout.rows import CenterRows
from es_flipout.rollout.step_loop import StepLoop


def loop_of_members(
    env: TorchVectorEnv, population: Population, *, lock: AbstractContextManager[Any] | None = None
) -> StepLoop:
    """Returns a loop in which members of a population play; see `StepLoop`."""
    policy = population.policy
    if _can_be_fused(env, policy):
        from es_flipout.rollout.fused_loop import FusedLoop

        assert isinstance(env, MujocoVectorEnv)
        return FusedLoop(env, population, lock=lock)
    return HostLoop(env, policy, member_rows(population), lock=lock)


def loop_of_center(env: TorchVectorEnv, policy: nn.Module) -> StepLoop:
    """Returns a loop in which the unperturbed policy plays every episode, in torch's own arithmetic."""
    return HostLoop(env, policy, CenterRows(policy), idle_share=0.0)


def _can_be_fused(env: TorchVectorEnv, policy: nn.Module) -> bool:
    if not isinstance(env, MujocoVectorEnv) or env.fused is None or env.device.type != "cpu":
        return False
    from es_flipout.rollout.fused_rows import is_fusible  # which imports numba

    return is_fusible(policy)
