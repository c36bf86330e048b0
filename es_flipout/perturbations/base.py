"""The contract of a noise family: draw, gather, product.

A `Perturbation` draws the noise of all P members of one generation, a `PopulationNoise`: a few tables with
one row per direction. A forward gathers the rows of its members (`PopulationNoise.rows`), and the
`ParameterNoise` of each parameter multiplies them with the inputs. `member` writes out the noise of one
member (the oracle of the forward), and `tiles` are the parts of the weighted sum of all noise, from which
`assembled` makes the gradient estimate.

Antithetic members are neighbors: member 2q has noise +eps_q and member 2q + 1 has -eps_q. This is decided
here and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from es_flipout.perturbations.noise_table import NoiseTable
from es_flipout.perturbations.parameter_noise import ParameterNoise
from es_flipout.perturbations.row_groups import RowGroups
from es_flipout.perturbations.tiles import Tile, compute_here


class PopulationNoise:
    """The noise of all members of one generation.

    Attributes:
        tables: the noise of every parameter, one row per direction.
        population_size: members P.
        antithetic: whether members come in pairs of opposite noise.
        num_bases: K equal runs of members, each of which shares one base tensor per weight; 1 for families
            without bases.
    """

    def __init__(
        self, tables: Sequence[NoiseTable], population_size: int, antithetic: bool, num_bases: int = 1
    ) -> None:
        self.tables = tables
        self.population_size = population_size
        self.antithetic = antithetic
        self.num_bases = num_bases

    @property
    def device(self) -> torch.device:
        """Where the noise is."""
        return self.tables[0].values.device

    @property
    def is_stored(self) -> bool:
        """Whether all noise is in memory, so that gathering it does not involve the host."""
        return all(table.is_stored for table in self.tables)

    def rows(self, members: Tensor, scale: float, *, grouped: bool = False) -> NoiseRows:
        """Returns scale * eps_m, by parameter name, for the members [N] (int64) of N rows.

        Args:
            members: their indices.
            scale: factor of their noise.
            grouped: whether the first N / K members are known to be among the first P / K of the population,
                the next N / K among the next, and so on, for K = `num_bases`. Their values are then not read.
        """
        return NoiseRows(self, members, scale, grouped=grouped)

    def member(self, index: int) -> dict[str, Tensor]:
        """Returns eps_m of member `index` written out, by parameter name."""
        members = torch.tensor([index], device=self.device)
        return {name: noise.dense()[0] for name, noise in self.rows(members, 1.0).items()}

    def gather(self, members: Tensor, scale: float) -> list[Tensor]:
        """Returns the rows that members [N] have in each table, their noise times `scale`, [N, width]."""
        directions, orientation = self.directions(members)
        factors = orientation.to(torch.float64) * scale
        return [table.gather(directions, factors) for table in self.tables]

    def base_of(self, members: Tensor) -> Tensor:
        """Returns the index of the base that members [N] use, int64 [N]."""
        count = num_directions(self.population_size, self.antithetic)
        return self.directions(members)[0] // (count // self.num_bases)

    def directions(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the direction of each of the members [N], int64 [N], and its orientation ±1, int64 [N]."""
        if not self.antithetic:
            return members, torch.ones_like(members)
        return members // 2, 1 - 2 * (members % 2)

    def pin(self, entries: Mapping[str, int]) -> None:
        """Leaves one entry of the first dimension of some parameters without noise, in all members."""
        for table in self.tables:
            for name, entry in entries.items():
                table.pin(name, entry)

    def rescale(self, scales: Mapping[str, Tensor]) -> None:
        """Multiplies the noise of parameters elementwise by `scales`, by name, of each parameter's shape.

        Raises:
            ValueError: if the family has no such noise; see `Perturbation.check_rescaling`.
        """
        for table in self.tables:
            table.rescale(scales)

    def tiles(self, weights: Tensor, *, squared: bool = False) -> list[Tile]:
        """Returns the parts of sum_m weights_m eps_m, or of sum_m weights_m eps_m², for weights [P]."""
        if self.antithetic:
            positive, negative = weights[0::2], weights[1::2]
            weights = positive + negative if squared else positive - negative
        return [tile for table in self.tables for tile in table.tiles(weights, squared=squared)]

    def assembled(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        """Takes the values of all `tiles` from `values`, and returns the sum by parameter name."""
        return {name: total for table in self.tables for name, total in table.assembled(values).items()}

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Returns sum_m weights_m eps_m, by parameter name, for weights [P]."""
        return self.assembled(iter(compute_here(self.tiles(weights))))


class NoiseRows(dict[str, ParameterNoise]):
    """The scaled noise of N rows, each with its own member's noise, by parameter name."""

    def __init__(self, noise: PopulationNoise, members: Tensor, scale: float, *, grouped: bool) -> None:
        self._noise, self._scale = noise, scale
        self._values = noise.gather(members, scale)
        self._groups: RowGroups | None = None
        if noise.num_bases > 1:
            self._groups = RowGroups(noise.base_of(members), noise.num_bases, grouped=grouped)
        super().__init__()
        for table, values in zip(noise.tables, self._values, strict=True):
            self.update(table.by_parameter(values, self._groups))

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Gives `rows` (int64 [M]) the noise of other members (int64 [M]), in place."""
        for values, gathered in zip(self._values, self._noise.gather(members, self._scale), strict=True):
            values[rows] = gathered
        if self._groups is not None:
            self._groups.assign(rows, self._noise.base_of(members))


class Perturbation(ABC):
    """A noise family: zero mean, unit variance per weight, members as independent as it can make them."""

    @abstractmethod
    def sample(
        self,
        parameters: Mapping[str, Tensor],
        population_size: int,
        generator: torch.Generator,
        *,
        antithetic: bool = True,
    ) -> PopulationNoise:
        """Draws the noise of a generation.

        Args:
            parameters: the perturbed parameters, by name; only shape, dtype and device are read.
            population_size: members P.
            generator: the source of the draw, on the parameters' device.
            antithetic: whether members come in pairs of opposite noise.

        Raises:
            ValueError: if the family does not support this population size.
        """

    def check_rescaling(self) -> None:
        """Checks that every weight can have a scale of its own, and that members tell whether it should grow.

        Raises:
            ValueError: if that is not so.
        """
        raise ValueError(f"{type(self).__name__} noise cannot have a sigma for each weight")


def num_directions(population_size: int, antithetic: bool) -> int:
    """Returns how many directions are drawn for P members.

    Raises:
        ValueError: if an antithetic population is odd.
    """
    if not antithetic:
        return population_size
    if population_size % 2:
        raise ValueError(f"an antithetic population must be even, got {population_size} members")
    return population_size // 2
