"""Tasks with a healthy region of states: being in it pays, and leaving it may end the episode."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from es_flipout.envs.mujoco.task import Fields, MujocoTask


class HealthyTask(MujocoTask):
    """A task that rewards health, and whose episode ends without it if `terminate_when_unhealthy`.

    Attributes:
        healthy_reward: reward of a step that ends healthy.
        terminate_when_unhealthy: whether a step that ends unhealthy is an episode's last.
    """

    healthy_reward: float
    terminate_when_unhealthy: bool

    @abstractmethod
    def is_healthy(self, fields: Fields) -> Tensor:
        """Returns which simulations are in the healthy region, bool [N]; with a NaN it is outside."""

    def survival_reward(self, fields: Fields) -> Tensor:
        """Returns what being healthy pays, float64 [N]."""
        return self.healthy_reward * self.is_healthy(fields).to(torch.float64)

    def terminated(self, fields: Fields) -> Tensor:
        """See `MujocoTask.terminated`."""
        if not self.terminate_when_unhealthy:
            return super().terminated(fields)
        return ~self.is_healthy(fields)


def strictly_within(values: Tensor, low: float, high: float) -> Tensor:
    """Returns which values lie between the bounds; the bounds themselves and NaN do not."""
    return (low < values) & (values < high)


def is_finite(fields: Fields) -> Tensor:
    """Returns in which simulations all of qpos and qvel is finite, bool [N]."""
    # Zero times what is not finite is NaN; this takes a third of the time of isfinite().all().
    return (torch.cat([fields["qpos"], fields["qvel"]], dim=1) * 0).sum(dim=1) == 0
