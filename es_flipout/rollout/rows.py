"""Policies side by side, as a step loop runs them: row n of a batch with the weights of the n-th member."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from typing_extensions import override


class Rows(Protocol):
    """A policy whose row n runs with the weights of member n of a selection."""

    def select(self, members: Tensor) -> None:
        """Makes it a selection of other members, int64 [N]."""

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Hands rows, int64 [M], over to other members, int64 [M]."""

    def __call__(self, *inputs: Any) -> Any:
        """Returns actions [N, ...] for observations [N, ...], and for the state of a recurrent policy."""


class CenterRows(Rows):
    """The unperturbed policy, as every member."""

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy

    @override
    def select(self, members: Tensor) -> None:
        pass  # all rows run with the same weights

    @override
    def assign(self, rows: Tensor, members: Tensor) -> None:
        pass

    @override
    def __call__(self, *inputs: Any) -> Any:
        return self._policy(*inputs)
