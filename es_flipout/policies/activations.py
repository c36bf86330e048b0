"""Nonlinearities whose result for an element does not depend on its place in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from es_flipout.choices import Activation


class ELU(nn.Module):
    """x where it is positive, exp(x) - 1 elsewhere.

    The rounding of torch's ELU and SiLU depends on an element's place in memory (vectorized or remainder), so
    a member's actions would depend on its row. That of torch.exp does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of x, same shape."""
        return torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)


class SiLU(nn.Module):
    """x sigmoid(x); not torch's, for the reason given at `ELU`."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of x, same shape."""
        return x / (1 + torch.exp(-x))


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": ELU, "silu": SiLU}
