"""Population: a policy and the noise of a generation; any members, side by side, in one forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from es_flipout.perturbations import PerturbedParameter, PopulationNoise


class MemberRows:
    """A policy whose row n runs with the weights of member n of a selection.

    It shares the policy's parameters: once they move, it is a selection around the new centre.
    """

    def __init__(self, policy: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._policy = policy
        self._parameters = dict(parameters)

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Returns actions [N, A] for observations [N, O], each row under its own member's weights."""
        actions: Tensor = torch.func.functional_call(self._policy, self._parameters, (observations,))
        return actions


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
        noise = self.noise.rows(members, self.sigma)
        parameters = {
            name: PerturbedParameter.of(name, value, noise[name], len(members))
            for name, value in self.policy.named_parameters()
        }
        return MemberRows(self.policy, parameters)

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
