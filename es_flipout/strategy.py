"""FlipoutES: ask for a population, tell its fitness, and the policy moves.

One generation is

    population = es.ask()                   # policy + noise of generation g
    fitness = evaluate(population)          # yours, or an evaluator's: [P]
    update = es.tell(fitness)               # utilities -> gradient estimate -> optimizer step
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.fitness import Shaping, centered_ranks
from es_flipout.perturbations import Flipout, Perturbation
from es_flipout.population import Population
from es_flipout.seeding import torch_generator


@dataclass(frozen=True)
class Update:
    """What a call of `tell` did.

    Attributes:
        gradient_norm: Euclidean norm of the gradient estimate.
        update_norm: Euclidean norm of the change of the parameters.
        parameter_norm: Euclidean norm of the parameters after it.
    """

    gradient_norm: float
    update_norm: float
    parameter_norm: float


class FlipoutES:
    """An evolution strategy over the parameters of any policy whose operations have rules.

    Attributes:
        policy: the centre; `tell` moves its parameters in place.
        optimizer: any torch.optim optimizer over them that needs no closure.
        sigma: standard deviation of a weight's perturbation; may be changed between generations.
        generation: generations told so far.
    """

    def __init__(
        self,
        policy: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        population_size: int = 256,
        sigma: float = 0.05,
        perturbation: Perturbation | None = None,
        fitness_shaping: Shaping = centered_ranks,
        seed: int = 0,
    ) -> None:
        """Takes the policy.

        Args:
            policy: the module to train; all its parameters are perturbed.
            optimizer: built over `policy.parameters()`; Adam with learning rate 0.01 if None.
            population_size: members P a generation, both halves of mirrored pairs counted.
            sigma: standard deviation of a weight's perturbation.
            perturbation: the noise family; mirrored flipout with one Rademacher base if None.
            fitness_shaping: returns [P] to utilities [P].
            seed: seed of the noise of every generation.

        Raises:
            ValueError: if sigma or the population size is not positive.
        """
        if sigma <= 0:
            raise ValueError(f"sigma must be > 0, got {sigma}")
        if population_size < 1:
            raise ValueError(f"population_size must be >= 1, got {population_size}")
        self.policy = policy
        self.optimizer = optimizer or torch.optim.Adam(policy.parameters(), lr=0.01)
        self.population_size = population_size
        self.sigma = sigma
        self.perturbation = perturbation or Flipout()
        self.fitness_shaping = fitness_shaping
        self.seed = seed
        self.generation = 0
        self._populations: list[Population] = []

    def ask(self) -> Population:
        """Returns the population of this generation; the same one until `tell` is called.

        Further populations that `ask_more` gave are forgotten.
        """
        del self._populations[1:]
        return self._populations[0] if self._populations else self.ask_more()

    def ask_more(self) -> Population:
        """Returns a further population of this generation, with new noise.

        `tell` then wants the fitness of all of them, in the order in which they were asked for.
        """
        parameters = dict(self.policy.named_parameters())
        device = next(iter(parameters.values())).device
        index = len(self._populations)
        generator = torch_generator(self.seed, self.generation, "perturbation", index, device=device)
        noise = self.perturbation.sample(parameters, self.population_size, generator)
        self._populations.append(Population(self.policy, noise, self.sigma))
        return self._populations[-1]

    @torch.no_grad()
    def tell(self, fitness: Tensor) -> Update:
        """Moves the policy towards the members of higher fitness and ends the generation.

        Args:
            fitness: return of each member of the population, [P]; NaN ranks worst. If `ask_more` gave
                further populations, [B P] for B of them.

        Raises:
            RuntimeError: if no population was asked for.
            ValueError: if there is not one return a member.
        """
        if not self._populations:
            raise RuntimeError("tell needs a population: call ask first")
        num_members = self.population_size * len(self._populations)
        if fitness.shape != (num_members,):
            raise ValueError(f"fitness must be [{num_members}], got {list(fitness.shape)}")
        gradient = self._gradient(self._utilities(fitness))
        parameters = dict(self.policy.named_parameters())
        before = {name: value.detach().clone() for name, value in parameters.items()}
        for name, value in parameters.items():
            value.grad = -gradient[name]  # torch optimizers descend, fitness ascends
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._populations = []
        self.generation += 1
        return Update(
            gradient_norm=_norm(gradient.values()),
            update_norm=_norm(parameters[name] - before[name] for name in parameters),
            parameter_norm=_norm(parameters.values()),
        )

    def _gradient(self, utilities: Tensor) -> dict[str, Tensor]:
        """Returns the mean of the populations' gradient estimates."""
        parts = utilities.view(-1, self.population_size)
        first, *others = (
            population.gradient(part) for population, part in zip(self._populations, parts, strict=True)
        )
        for other in others:
            for name, value in other.items():
                first[name] += value
        return {name: value / len(self._populations) for name, value in first.items()}

    def _utilities(self, fitness: Tensor) -> Tensor:
        device = next(self.policy.parameters()).device
        return self.fitness_shaping(fitness.detach().cpu()).to(device)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next generation depends on, besides the arguments of the constructor."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generation": self.generation,
            "sigma": self.sigma,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generation = state["generation"]
        self.sigma = state["sigma"]
        self._populations = []


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = [tensor.detach().to(torch.float64).square().sum() for tensor in tensors]
    return float(torch.stack(squares).sum().sqrt())
