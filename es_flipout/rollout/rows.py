"""Policies side by side, as a step loop runs them: row n of a batch with the weights of the n-th member."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from es_flipout.policies import MLPPolicy, is_plain_mlp
from es_flipout.population import Population
from es_flipout.rollout.mlp_rows import MLPRows


class Rows(Protocol):
    """A policy whose row n runs with the weights of member n of a selection."""

    def select(self, members: Tensor) -> None:
        """Makes it a selection of other members, int64 [N]."""

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Hands rows, int64 [M], over to other members, int64 [M]."""

    def __call__(self, *inputs: Any) -> Any:
        """Returns actions [N, ...] for observations [N, ...], and for the state of a recurrent policy."""


def member_rows(population: Population) -> Rows:
    """Returns the fastest way to run members of a population side by side; none is selected yet."""
    policy = population.policy
    if is_plain_mlp(policy) and population.noise.device.type == "cpu":
        assert isinstance(policy, MLPPolicy)
        return MLPRows(population, policy)
    return population.select(torch.zeros(0, dtype=torch.int64))


class CenterRows:
    """The unperturbed policy, as every member."""

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy

    def select(self, members: Tensor) -> None:
        """Has nothing to do: all rows run with the same weights."""

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Has nothing to do, either."""

    def __call__(self, *inputs: Any) -> Any:
        """Returns what the policy returns."""
        return self._policy(*inputs)
