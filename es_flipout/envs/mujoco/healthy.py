"""Tasks with a healthy region of states: being in it is rewarded, and leaving it may end the episode."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.mujoco.task import Fields, MujocoTask


class HealthyTask(MujocoTask):
    """A task that rewards being healthy, and ends the episode otherwise if `terminate_when_unhealthy`.

    Attributes:
        healthy_reward: reward of a step after which the state is healthy.
        terminate_when_unhealthy: whether an unhealthy state ends the episode.
    """

    healthy_reward: float
    terminate_when_unhealthy: bool

    @abstractmethod
    def is_healthy(self, fields: Fields) -> Tensor:
        """Returns which envs are in the healthy region, bool [N]; those with a NaN are not."""

    def survival_reward(self, fields: Fields) -> Tensor:
        """Returns the reward for being healthy, float64 [N]."""
        return self.healthy_reward * self.is_healthy(fields).to(torch.float64)

    @override
    def terminated(self, fields: Fields) -> Tensor:
        if not self.terminate_when_unhealthy:
            return super().terminated(fields)
        return ~self.is_healthy(fields)


def strictly_within(values: Tensor, low: float, high: float) -> Tensor:
    """Returns which values lie between the bounds; the bounds themselves and NaN do not."""
    return (low < values) & (values < high)


def is_finite(fields: Fields) -> Tensor:
    """Returns in which envs all of qpos and qvel is finite, bool [N]."""
    # Zero times inf or NaN is NaN; this takes a third of the time of isfinite().all().
    return (torch.cat([fields["qpos"], fields["qvel"]], dim=1) * 0).sum(dim=1) == 0
