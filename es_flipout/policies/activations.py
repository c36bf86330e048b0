"""Nonlinearities whose result for an element does not depend on its place in memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "relu", "elu", "silu"]


class ELU(nn.Module):
    """x where it is positive, exp(x) - 1 elsewhere.

    torch's own ELU and SiLU round an element differently by its place in memory (vectors or the remainder),
    so that a member's actions would depend on its row; torch.exp does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as given."""
        return torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)


class SiLU(nn.Module):
    """x sigmoid(x); see `ELU` for why it is not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as given."""
        return x / (1 + torch.exp(-x))


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": ELU, "silu": SiLU}
