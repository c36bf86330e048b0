"""Noise of many directions, all tensors side by side in one matrix, so that a row is had by one gather."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Packed:
    """Named tensors of D directions.

    Attributes:
        values: all of them, flat and side by side, [D, width].
        shapes: shape of each tensor, by name, in the order in which they lie there.
        is_stored: whether `values` holds them all.
    """

    is_stored = True

    def __init__(self, values: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        self.values = values
        self.shapes = shapes
        self._num_oriented = values.shape[1]
        self._dtype = values.dtype

    @classmethod
    def of(
        cls, oriented: Mapping[str, Tensor], unoriented: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Packed:
        """Packs tensors [D, *shape].

        Args:
            oriented: those that carry the sign and the scale of a member's noise.
            unoriented: those that do not.
            dtype: what `take` returns.
        """
        tensors = {**oriented, **unoriented}
        packed = cls(
            torch.cat([value.flatten(1) for value in tensors.values()], dim=1),
            {name: value.shape[1:] for name, value in tensors.items()},
        )
        packed._num_oriented = sum(value[0].numel() for value in oriented.values())
        packed._dtype = dtype
        return packed

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def gather(self, directions: Tensor) -> Tensor:
        """Returns the values of directions [N], [N, width]."""
        return self.values[directions]

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Returns the values of all directions times their weights [D], [width], of the weights' dtype."""
        return weights @ self.values.to(weights.dtype)

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Returns views of [..., width] as [..., *shape], by name."""
        parts = values.split_with_sizes([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*values.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def take(self, directions: Tensor, factors: Tensor) -> Tensor:
        """Returns the values of directions [N], what is oriented times factors [N], [N, width]."""
        values = self.gather(directions).to(self._dtype)
        values[:, : self._num_oriented] *= factors.to(self._dtype).unsqueeze(1)
        return values


def by_dtype(parameters: Mapping[str, Tensor]) -> dict[torch.dtype, dict[str, Tensor]]:
    """Returns the parameters by dtype, in order of appearance."""
    groups: dict[torch.dtype, dict[str, Tensor]] = {}
    for name, value in parameters.items():
        groups.setdefault(value.dtype, {})[name] = value
    return groups


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns what sums over a population are taken in: nothing below float32."""
    return torch.promote_types(dtype, torch.float32)
