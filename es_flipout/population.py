"""Population: a policy and the noise of a generation; any members, side by side, in one forward."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.perturbations import PerturbedParameter, PopulationNoise


class MemberRows:
    """A policy whose row n runs with the weights of member n of a selection.

    It shares the policy's parameters and buffers, and nothing else, so that several selections may run at the
    same time. Once the policy has changed, make another.
    """

    def __init__(self, population: Population, members: Tensor) -> None:
        self._population = population
        policy = population.policy
        tensors = [*policy.parameters(), *policy.buffers()]
        self._policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in tensors})
        self._stand_ins = {
            name: PerturbedParameter.of(name, parameter) for name, parameter in policy.named_parameters()
        }
        by_parameter = {id(parameter): self._stand_ins[name] for name, parameter in policy.named_parameters()}
        for module in self._policy.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = by_parameter[id(parameter)]  # type: ignore[assignment]
        self.select(members)

    def select(self, members: Tensor) -> None:
        """Makes it a selection of other members, int64 [N], of any number."""
        self._noise = self._population.noise.rows(members, self._population.sigma)
        for name, stand_in in self._stand_ins.items():
            stand_in.noise, stand_in.num_rows = self._noise[name], len(members)

    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Hands rows (int64 [M]) over to other members (int64 [M]); the other rows keep theirs."""
        self._noise.assign(rows, members)

    @torch.no_grad()
    def __call__(self, *arguments: Any) -> Any:
        """Returns what the policy's forward does for rows [N, ...], each under its own member's weights."""
        return self._policy(*arguments)


class Population:
    """All P members of one generation.

    Attributes:
        policy: the unperturbed policy (the centre); any module whose operations have rules.
        noise: the perturbations of the generation.
        sigma: standard deviation of a weight's perturbation.
    """

    def __init__(self, policy: nn.Module, noise: PopulationNoise, sigma: float) -> None:
        self.policy = policy
        self.noise = noise
        self.sigma = sigma

    @property
    def size(self) -> int:
        """Number of members P."""
        return self.noise.population_size

    def select(self, members: Tensor) -> MemberRows:
        """Returns the policy in which row n runs as member `members[n]` (int64 [N], repeats allowed)."""
        return MemberRows(self, members)

    def member(self, index: int) -> dict[str, Tensor]:
        """Returns the weights of one member written out, by parameter name.

        `torch.func.functional_call(policy, population.member(i), (observation,))` is that member alone:
        the oracle of `select`.

        Raises:
            IndexError: if there is no such member.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"member {index} of a population of {self.size}")
        noise = self.noise.member(index)
        return {
            name: value.detach() + self.sigma * noise[name] for name, value in self.policy.named_parameters()
        }

    def gradient(self, utilities: Tensor) -> dict[str, Tensor]:
        """Returns the estimated ascent direction of the fitness, by parameter name.

        g = 1 / (P sigma) Σ_m u_m eps_m (Salimans, Ho, Chen, Sidor and Sutskever, 2017, arXiv 1703.03864).

        Args:
            utilities: shaped fitness of every member, [P].

        Raises:
            ValueError: if there is not one utility a member.
        """
        if utilities.shape != (self.size,):
            raise ValueError(f"utilities must be [{self.size}], got {list(utilities.shape)}")
        total = self.noise.weighted_sum(utilities)
        return {name: total[name] / (self.size * self.sigma) for name, _ in self.policy.named_parameters()}
