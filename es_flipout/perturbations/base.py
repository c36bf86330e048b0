"""The contract of a noise family: what a generation's perturbations owe to the rest of the engine.

A `Perturbation` draws a `PopulationNoise`, the noise eps_m of all P members of one generation, kept in
whatever compact form the family has. Three views of it exist: the rows that a forward needs
(`rows`), one member written out (`member`, the oracle of the first), and the weighted sum that the
gradient estimate needs (`weighted_sum`).

Mirrored members are neighbours: member 2q has noise +eps_q and member 2q + 1 has -eps_q. This is the
only place that decides so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class ParameterNoise(ABC):
    """The scaled noise of one parameter for N rows, each row with its own member's noise."""

    @abstractmethod
    def add_linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Adds each row's noise, applied as a linear map, to what the unperturbed map gave.

        Args:
            outputs: [N, ..., J]; may be overwritten.
            inputs: [N, ..., I], for a parameter of shape [J, I].

        Returns:
            [N, ..., J], row n being outputs[n] + inputs[n] @ noise_nᵀ.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """Returns the noise written out, [N, *parameter shape]."""


class NoiseRows(dict[str, ParameterNoise], ABC):
    """The scaled noise of N rows, by parameter name."""

    @abstractmethod
    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Gives `rows` (int64 [M]) the noise of other members (int64 [M])."""


class PopulationNoise(ABC):
    """The noise of all members of one generation.

    Attributes:
        population_size: members P.
        mirrored: whether members come in antithetic pairs.
    """

    def __init__(self, population_size: int, mirrored: bool) -> None:
        self.population_size = population_size
        self.mirrored = mirrored

    @abstractmethod
    def rows(self, members: Tensor, scale: float) -> NoiseRows:
        """Returns scale * eps_m, by parameter name, for the members [N] (int64) of N rows."""

    @abstractmethod
    def member(self, index: int) -> dict[str, Tensor]:
        """Returns eps_m of member `index` written out, by parameter name."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Returns sum_m weights_m eps_m, by parameter name, for weights [P]."""

    def directions(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Returns, for members [N], the drawn direction of each [N] and its orientation ±1 [N]."""
        if not self.mirrored:
            return members, torch.ones_like(members)
        return members // 2, 1 - 2 * (members % 2)

    def direction_weights(self, weights: Tensor) -> Tensor:
        """Returns the weight of each drawn direction, [P / 2] if mirrored else [P]."""
        return weights[0::2] - weights[1::2] if self.mirrored else weights


class Perturbation(ABC):
    """A noise family: zero mean, unit variance a weight, independent from member to member as far as it can.

    Attributes:
        mirrored: whether members come in antithetic pairs.
    """

    mirrored: bool

    @abstractmethod
    def sample(
        self, parameters: Mapping[str, Tensor], population_size: int, generator: torch.Generator
    ) -> PopulationNoise:
        """Draws the noise of a generation.

        Args:
            parameters: what is perturbed, by name; only shape, dtype and device are read.
            population_size: members P.
            generator: the source of the draw, on the parameters' device.

        Raises:
            ValueError: if the family cannot serve this population size.
        """

    def num_directions(self, population_size: int) -> int:
        """Returns how many directions are drawn for P members.

        Raises:
            ValueError: if a mirrored population is odd.
        """
        if not self.mirrored:
            return population_size
        if population_size % 2:
            raise ValueError(f"a mirrored population must be even, got {population_size} members")
        return population_size // 2
