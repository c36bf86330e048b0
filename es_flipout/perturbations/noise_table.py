"""Tables of noise: what some parameters need per direction, side by side in one row.

A direction is drawn once and used by one member, or by both members of an antithetic pair. Because all
parameters of a dtype share a table, the noise of a member costs one gather per table, not one per parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.perturbations.parameter_noise import DenseRows, ParameterNoise
from es_flipout.perturbations.row_groups import RowGroups
from es_flipout.perturbations.tiles import TILE_VALUES, Tile, joined, tiles_of


class NoiseTable(ABC):
    """The noise of parameters of one dtype, for D directions.

    Attributes:
        values: one row per direction, [D, width], of any dtype.
        shapes: shape of each part of a row, by name, in the order of its columns.
        dtype: dtype of the parameters.
        num_oriented: the first columns, which are multiplied by the sign and scale of a member's noise.
        is_stored: whether `values` holds all rows, so that `gather` does not involve the host.
    """

    is_stored = True

    def __init__(
        self, values: Tensor, shapes: Mapping[str, torch.Size], dtype: torch.dtype, num_oriented: int
    ) -> None:
        self.values = values
        self.shapes = shapes
        self.dtype = dtype
        self.num_oriented = num_oriented

    def gather(self, directions: Tensor, factors: Tensor) -> Tensor:
        """Returns the rows of directions [N], [N, width] of `dtype`, oriented columns times factors [N]."""
        values = self._look_up(directions).to(self.dtype)
        values[:, : self.num_oriented] *= factors.to(self.dtype).unsqueeze(1)
        return values

    def _look_up(self, directions: Tensor) -> Tensor:
        """Returns a copy of the rows of directions [N], [N, width]."""
        return self.values[directions]

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Returns views of the parts of [..., width], each [..., *shape], by name."""
        parts = values.split_with_sizes([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*values.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @abstractmethod
    def by_parameter(self, values: Tensor, groups: RowGroups | None) -> dict[str, ParameterNoise]:
        """Returns the noise of N rows by parameter name; it must be made of views of `values`.

        Args:
            values: what `gather` returned, [N, width]; it may be overwritten when rows change members.
            groups: which rows share a base; None if all do, or if the family has no bases.
        """

    @abstractmethod
    def tiles(self, weights: Tensor, *, squared: bool) -> list[Tile]:
        """Returns the parts of the sum of all directions' noise times weights [D].

        Args:
            weights: of the directions.
            squared: whether to sum the squares of the noise instead, in `accumulation_dtype`; only for tables
                that `rescale`.
        """

    @abstractmethod
    def assembled(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        """Takes the values of this table's tiles from `values`, and returns the sum by parameter name."""

    @abstractmethod
    def pin(self, name: str, entry: int) -> None:
        """Leaves an entry of a parameter's first dimension without noise, if the noise is in this table."""

    def rescale(self, scales: Mapping[str, Tensor]) -> None:
        """Multiplies the noise of this table's parameters elementwise by `scales`, by name.

        Raises:
            ValueError: if the table cannot hold such noise.
        """
        raise ValueError(f"{type(self).__name__} cannot hold noise with a scale for each weight")


class DenseTable(NoiseTable):
    """Noise written out.

    Attributes:
        tile_values: columns of a tile of the weighted sum at most.
    """

    tile_values: ClassVar[int] = TILE_VALUES

    def __init__(self, values: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__(values, shapes, values.dtype, num_oriented=values.shape[1])

    @override
    def by_parameter(self, values: Tensor, groups: RowGroups | None) -> dict[str, ParameterNoise]:
        return {name: DenseRows(part) for name, part in self.split(values).items()}

    @override
    def tiles(self, weights: Tensor, *, squared: bool) -> list[Tile]:
        dtype = accumulation_dtype(self.dtype)
        formula = partial(self._sum, weights.to(dtype), squared)
        return tiles_of(
            self.values.shape[1:],
            dtype if squared else self.dtype,
            self.values.device,
            formula,
            self.tile_values,
        )

    @override
    def assembled(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        return self.split(joined(values, self.values.shape[1:], self.tile_values))

    @override
    def pin(self, name: str, entry: int) -> None:
        if name in self.shapes:
            self.split(self.values)[name][:, entry] = 0

    @override
    def rescale(self, scales: Mapping[str, Tensor]) -> None:
        self.values *= self._row_of(scales)

    def _row_of(self, scales: Mapping[str, Tensor]) -> Tensor:
        """Returns the scales of this table's parameters in the order of its columns, [width]."""
        return torch.cat([scales[name].flatten() for name in self.shapes])

    def _sum(self, weights: Tensor, squared: bool, columns: slice) -> Tensor:
        """Returns some columns of the sum of all rows, or of their squares, times weights [D]."""
        values = self.values[:, columns].to(weights.dtype)
        return weights @ (values.square() if squared else values)


def draw_dense(
    parameters: Mapping[str, Tensor], num_directions: int, generator: torch.Generator
) -> list[NoiseTable]:
    """Draws standard normal noise and stores all of it: meant for small parameters."""
    tables: list[NoiseTable] = []
    for dtype, group in by_dtype(parameters).items():
        shapes = {name: value.shape for name, value in group.items()}
        size = (num_directions, sum(shape.numel() for shape in shapes.values()))
        values = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
        tables.append(DenseTable(values, shapes))
    return tables


def side_by_side(parts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, torch.Size]]:
    """Returns tensors [D, *shape] in one, [D, width], and the shape of each, by name."""
    values = torch.cat([part.flatten(1) for part in parts.values()], dim=1)
    return values, {name: part.shape[1:] for name, part in parts.items()}


def matrices_and_vectors(
    parameters: Mapping[str, Tensor],
) -> tuple[dict[torch.dtype, dict[str, Tensor]], dict[str, Tensor]]:
    """Returns the parameters of two dimensions or more, by dtype, and all others."""
    matrices = {name: value for name, value in parameters.items() if value.ndim >= 2}
    return by_dtype(matrices), {name: value for name, value in parameters.items() if value.ndim < 2}


def by_dtype(parameters: Mapping[str, Tensor]) -> dict[torch.dtype, dict[str, Tensor]]:
    """Returns the parameters by dtype, in order of appearance."""
    groups: dict[torch.dtype, dict[str, Tensor]] = {}
    for name, value in parameters.items():
        groups.setdefault(value.dtype, {})[name] = value
    return groups


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums over a population: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
