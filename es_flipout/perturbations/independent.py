"""Independent noise: each member has a dense noise tensor of its own for every parameter.

The textbook estimator, at the price of P times the policy's memory and one matrix product a member.
Here it is the oracle of the other families, and the slow baseline. Every direction has a seed of its own, so
that whoever needs one member, or only the gradient, need not hold the noise of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.perturbations.base import Perturbation, PopulationNoise, num_directions
from es_flipout.perturbations.packing import Packed, accumulation_dtype, by_dtype
from es_flipout.perturbations.parameter_noise import DenseNoise, ParameterNoise


class SeededPack(Packed):
    """Standard normal values of D directions, each drawn from a seed of its own.

    Those that are asked for together are kept, since they will be again; a single one is not.
    """

    is_stored = False

    def __init__(self, seed: int, count: int, shapes: Mapping[str, torch.Size], like: Tensor) -> None:
        """Takes the first of D seeds; values are of the dtype and on the device of `like`."""
        super().__init__(like.new_empty(0, sum(shape.numel() for shape in shapes.values())), shapes)
        # One after the other: torch's generator on the CPU heeds 32 bits, of which no two may be the same.
        self._seeds = range(seed, seed + count)
        self._drawn: dict[int, Tensor] = {}

    def gather(self, directions: Tensor) -> Tensor:
        """See `Packed.gather`."""
        wanted = directions.tolist()
        if len(wanted) > 1:
            drawn = {each: self._draw(each) for each in dict.fromkeys(wanted) if each not in self._drawn}
            if drawn and self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # others may read it on their streams
            self._drawn.update(drawn)
        values = self.values.new_empty(len(wanted), self.values.shape[1])
        for row, direction in zip(values, wanted, strict=True):
            row.copy_(self._row(direction))
        return values

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """See `Packed.weighted_sum`; what is not kept is drawn once more, and forgotten."""
        total = weights.new_zeros(self.values.shape[1])
        for row, weight in zip(self._rows(), weights.tolist(), strict=True):
            total.add_(row, alpha=weight)
        return total

    def _rows(self) -> Iterator[Tensor]:
        """Returns the values of all directions, in order, drawn on as many threads as torch uses."""
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
        # A generator of its own: threads may draw at the same time.
        return row.normal_(generator=torch.Generator(row.device).manual_seed(self._seeds[direction]))


class IndependentNoise(PopulationNoise):
    """Dense noise of D directions; one pack a dtype."""

    def of_parameters(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, ParameterNoise]:
        """See `PopulationNoise.of_parameters`."""
        return {name: DenseNoise(value) for pack in values for name, value in pack.items()}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """See `PopulationNoise.weighted_sum`."""
        weights = self.direction_weights(weights)
        total: dict[str, Tensor] = {}
        for pack in self.packs:
            summed = pack.weighted_sum(weights.to(accumulation_dtype(pack.values.dtype)))
            total |= pack.by_name(summed.to(pack.values.dtype))
        return total


@dataclass(frozen=True)
class Independent(Perturbation):
    """Gaussian noise, dense and independent from member (or antithetic pair) to member."""

    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> IndependentNoise:
        """See `Perturbation.sample`."""
        count = num_directions(population_size, antithetic)
        packs = []
        for group in by_dtype(parameters).values():
            shapes = {name: value.shape for name, value in group.items()}
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            packs.append(SeededPack(seed, count, shapes, next(iter(group.values())).detach()))
        return IndependentNoise(packs, population_size, antithetic)


def sample_dense(
    parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator, antithetic: bool
) -> IndependentNoise:
    """Draws standard normal noise of P members for parameters, at once: for those that are small."""
    count = num_directions(population_size, antithetic)
    packs = []
    for dtype, group in by_dtype(parameters).items():
        shapes = {name: value.shape for name, value in group.items()}
        size = sum(shape.numel() for shape in shapes.values())
        values = torch.randn(count, size, generator=generator, dtype=dtype, device=generator.device)
        packs.append(Packed(values, shapes))
    return IndependentNoise(packs, population_size, antithetic)
