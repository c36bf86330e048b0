"""The contract of a noise family: what a generation's perturbations owe to the rest of the engine.

A `Perturbation` draws a `PopulationNoise`, the noise eps_m of all P members of one generation, kept in
whatever compact form the family has. Three views of it exist: the rows that a forward needs
(`rows`), one member written out (`member`, the oracle of the first), and the weighted sum that the
gradient estimate needs (`weighted_sum`).

Antithetic members are neighbors: member 2q has noise +eps_q and member 2q + 1 has -eps_q. This is the
only place that decides so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from es_flipout.perturbations.packing import Packed
from es_flipout.perturbations.parameter_noise import ParameterNoise


class NoiseRows(dict[str, ParameterNoise]):
    """The scaled noise of N rows, by parameter name."""

    def __init__(self, noise: PopulationNoise, members: Tensor, scale: float) -> None:
        self._noise = noise
        self._scale = scale
        self._values = noise.take(members, scale)
        super().__init__(self._of_parameters(self._values))

    def _of_parameters(self, values: Sequence[Tensor]) -> dict[str, ParameterNoise]:
        """Returns views of what `PopulationNoise.take` gave, by parameter name."""
        return self._noise.of_parameters(self._by_name(values))

    def _by_name(self, values: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [pack.by_name(each) for pack, each in zip(self._noise.packs, values, strict=True)]

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Gives `rows` (int64 [M]) the noise of other members (int64 [M])."""
        for values, taken in zip(self._values, self._noise.take(members, self._scale), strict=True):
            values[rows] = taken


class PopulationNoise(ABC):
    """The noise of all members of one generation.

    Attributes:
        population_size: members P.
        antithetic: whether members come in pairs of opposite noise.
        packs: all that a direction's noise consists of, besides what directions share.
        num_bases: K, such that each of K equal runs of members shares something of its own; 1 if nothing.
    """

    num_bases: int = 1

    def __init__(self, packs: Sequence[Packed], population_size: int, antithetic: bool) -> None:
        self.packs = packs
        self.population_size = population_size
        self.antithetic = antithetic

    @abstractmethod
    def of_parameters(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, ParameterNoise]:
        """Returns the noise of rows by parameter name, given what each pack has for them, [N, ...]."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Returns sum_m weights_m eps_m, by parameter name, for weights [P]."""

    @property
    def device(self) -> torch.device:
        """Where the noise is."""
        return self.packs[0].device

    @property
    def is_stored(self) -> bool:
        """Whether all noise is there, so that taking a row of it needs nothing from the host."""
        return all(pack.is_stored for pack in self.packs)

    def rows(self, members: Tensor, scale: float, *, grouped: bool = False) -> NoiseRows:
        """Returns scale * eps_m, by parameter name, for the members [N] (int64) of N rows.

        Args:
            members: their indices.
            scale: what their noise is multiplied by.
            grouped: whether the first N / K of them are known to be among the first P / K members, the next
                among the next, and so on, for the `num_bases` K: then nobody has to look.
        """
        return NoiseRows(self, members, scale)

    def member(self, index: int) -> dict[str, Tensor]:
        """Returns eps_m of member `index` written out, by parameter name."""
        members = torch.tensor([index], device=self.device)
        return {name: noise.dense()[0] for name, noise in self.rows(members, 1.0).items()}

    def take(self, members: Tensor, scale: float) -> list[Tensor]:
        """Returns what each pack has for members [N], their noise times `scale`, [N, width]."""
        directions, orientation = self.directions(members)
        factors = orientation.to(torch.float64) * scale
        return [pack.take(directions, factors) for pack in self.packs]

    def directions(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Returns, for members [N], the drawn direction of each [N] and its orientation ±1 [N]."""
        if not self.antithetic:
            return members, torch.ones_like(members)
        return members // 2, 1 - 2 * (members % 2)

    def direction_weights(self, weights: Tensor) -> Tensor:
        """Returns the weight of each drawn direction, [P / 2] if antithetic else [P]."""
        return weights[0::2] - weights[1::2] if self.antithetic else weights


class Perturbation(ABC):
    """A noise family: zero mean, unit variance a weight, members as independent as it can make them."""

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
            parameters: what is perturbed, by name; only shape, dtype and device are read.
            population_size: members P.
            generator: the source of the draw, on the parameters' device.
            antithetic: whether members come in pairs of opposite noise.

        Raises:
            ValueError: if the family cannot serve this population size.
        """


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
