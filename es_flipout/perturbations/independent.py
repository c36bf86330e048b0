"""Independent noise: every direction has its own dense noise tensor for every parameter.

The textbook estimator. It costs P times the policy's memory and one matrix product per member, and serves as
the oracle of the other families and as the slow baseline. Each direction has its own seed, so neither one
member nor the gradient requires the noise of all members in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.noise_table import DenseTable, by_dtype


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


class SeededTable(DenseTable):
    """Standard normal rows of D directions, each drawn from its own seed.

    Rows that are gathered together are kept, because they will be needed again; a single one is not.
    """

    is_stored = False

    def __init__(self, seed: int, count: int, shapes: Mapping[str, torch.Size], like: Tensor) -> None:
        """Takes the first of D consecutive seeds; values have the dtype and device of `like`."""
        super().__init__(like.new_empty(0, sum(shape.numel() for shape in shapes.values())), shapes)
        # Consecutive, because torch's CPU generator uses only 32 bits of a seed, and no two may coincide.
        self._seeds = range(seed, seed + count)
        self._drawn: dict[int, Tensor] = {}
        self._pinned: list[tuple[str, int]] = []

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
    def _sum(self, weights: Tensor) -> Tensor:
        total = weights.new_zeros(self.values.shape[1])
        for row, weight in zip(self._rows(), weights.tolist(), strict=True):
            total.add_(row, alpha=weight)
        return total

    def _rows(self) -> Iterator[Tensor]:
        """Yields the rows of all directions in order, drawn on as many threads as torch uses."""
        count = len(self._seeds)
        if len(self._drawn) == count:
            yield from (self._drawn[direction] for direction in range(count))
            return
        num_threads = torch.get_num_threads()
        with ThreadPoolExecutor(num_threads) as threads:
            for start in range(0, count, num_threads):
                yield from threads.map(self._row, range(start, min(start + num_threads, count)))

    def _row(self, direction: int) -> Tensor:
        drawn = self._drawn.get(direction)
        return self._draw(direction) if drawn is None else drawn

    def _draw(self, direction: int) -> Tensor:
        row = self.values.new_empty(self.values.shape[1])
        # Its own generator: several threads may draw at the same time.
        row.normal_(generator=torch.Generator(row.device).manual_seed(self._seeds[direction]))
        for name, entry in self._pinned:
            self.split(row)[name][entry] = 0
        return row

    @override
    def pin(self, name: str, entry: int) -> None:
        if name in self.shapes:
            self._pinned.append((name, entry))
