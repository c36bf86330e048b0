"""Independent noise: every direction has its own dense noise tensor for every parameter.

The textbook estimator. It costs P times the policy's memory and one matrix product per member, and serves as
the oracle of the other families and as the slow baseline. Each direction has its own seed, so neither one
member nor the gradient requires the noise of all members in memory. So has each tile of its parameters: the
gradient of some tiles requires the draws of those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.noise_table import DenseTable, by_dtype
from es_flipout.perturbations.tiles import cut

DRAWN_AHEAD = 8
"""Directions that a thread draws before their sum goes on."""


@dataclass(frozen=True)
class Independent(Perturbation):
    """Gaussian noise, dense and independent between members (between pairs if antithetic)."""

    @override
    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> PopulationNoise:
        count = num_directions(population_size, antithetic)
        tables = []
        for group in by_dtype(parameters).values():
            shapes = {name: value.shape for name, value in group.items()}
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            tables.append(SeededTable(seed, count, shapes, next(iter(group.values())).detach()))
        return PopulationNoise(tables, population_size, antithetic)

    @override
    def check_rescaling(self) -> None:
        """Every member has noise of its own."""


class SeededTable(DenseTable):
    """Standard normal rows of D directions, each drawn tile by tile, every tile from its own seed.

    Rows that are gathered together are kept, because they will be needed again; a single one is not.
    """

    is_stored = False
    # Smaller than where nothing is drawn, for draws are worth sharing out early; a draw of fewer values would
    # spend its time on its generator.
    tile_values: ClassVar[int] = 2**15

    def __init__(self, seed: int, count: int, shapes: Mapping[str, torch.Size], like: Tensor) -> None:
        """Takes the first of all consecutive seeds; values have the dtype and device of `like`."""
        super().__init__(like.new_empty(0, sum(shape.numel() for shape in shapes.values())), shapes)
        self._directions = range(count)
        self._cut = cut(self.values.shape[1:], self.tile_values)
        # Consecutive, because torch's CPU generator uses only 32 bits of a seed, and no two may coincide.
        self._seeds = range(seed, seed + count * len(self._cut))
        self._drawn: dict[int, Tensor] = {}
        self._pinned: list[tuple[int, int]] = []  # first and last column, the latter excluded
        self._scale: Tensor | None = None

    @override
    def _look_up(self, directions: Tensor) -> Tensor:
        wanted = directions.tolist()
        if len(wanted) > 1:
            drawn = {each: self._draw(each) for each in dict.fromkeys(wanted) if each not in self._drawn}
            if drawn and self.values.device.type == "cuda":
                # Others may read them on their own streams.
                torch.cuda.current_stream(self.values.device).synchronize()
            self._drawn.update(drawn)
        values = self.values.new_empty(len(wanted), self.values.shape[1])
        for row, direction in zip(values, wanted, strict=True):
            row.copy_(self._row(direction))
        return values

    @override
    def _sum(self, weights: Tensor, squared: bool, columns: slice) -> Tensor:
        total = weights.new_zeros(columns.stop - columns.start)
        for part, weight in zip(self._parts(columns), weights.tolist(), strict=True):
            total.add_(part.to(total.dtype).square() if squared else part, alpha=weight)
        return total

    def _parts(self, columns: slice) -> Iterator[Tensor]:
        """Yields a tile of the rows of all directions in order, drawn on as many threads as torch uses."""
        if len(self._drawn) == len(self._directions):
            yield from (self._drawn[direction][columns] for direction in self._directions)
            return
        num_threads = torch.get_num_threads()
        with ThreadPoolExecutor(num_threads) as threads:
            step = DRAWN_AHEAD * num_threads
            for start in range(0, len(self._directions), step):
                directions = self._directions[start : start + step]
                yield from threads.map(partial(self._part, columns=columns), directions)

    def _row(self, direction: int) -> Tensor:
        drawn = self._drawn.get(direction)
        return self._draw(direction) if drawn is None else drawn

    def _part(self, direction: int, columns: slice) -> Tensor:
        drawn = self._drawn.get(direction)
        if drawn is not None:
            return drawn[columns]
        return self._fill(self.values.new_empty(columns.stop - columns.start), direction, columns)

    def _draw(self, direction: int) -> Tensor:
        row = self.values.new_empty(self.values.shape[1])
        for columns in self._cut:
            self._fill(row[columns], direction, columns)
        return row

    def _fill(self, part: Tensor, direction: int, columns: slice) -> Tensor:
        """Draws a tile of a row into `part`, and returns it."""
        seed = self._seeds[direction * len(self._cut) + columns.start // self.tile_values]
        # Its own generator: several threads may draw at the same time.
        part.normal_(generator=torch.Generator(part.device).manual_seed(seed))
        for first, last in self._pinned:
            part[max(first - columns.start, 0) : max(last - columns.start, 0)] = 0
        if self._scale is not None:
            part *= self._scale[columns]
        return part

    @override
    def pin(self, name: str, entry: int) -> None:
        if name in self.shapes:
            row = torch.empty(self.values.shape[1], device="meta")
            pinned = self.split(row)[name][entry]
            first = int(pinned.storage_offset())
            self._pinned.append((first, first + pinned.numel()))

    @override
    def rescale(self, scales: Mapping[str, Tensor]) -> None:
        row = self._row_of(scales)
        self._scale = row if self._scale is None else self._scale * row
