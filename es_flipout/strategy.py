"""FlipoutES: ask for a population, tell its fitness, and the policy improves.

One generation is

    population = es.ask()                   # policy + noise of generation g
    fitness = ...                           # of every member, [P]: your function, or a player
    update = es.tell(fitness)               # utilities -> gradient estimate -> optimizer step
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.fitness import FITNESS_SHAPING, SHAPINGS, FitnessShaping, Shaping, tied_fraction
from es_flipout.optimizers import LEARNING_RATE, OPTIMIZER, check_optimizer, make_optimizer
from es_flipout.perturbations import Flipout, Perturbation
from es_flipout.perturbations.torch_modes import untracked
from es_flipout.population import NoiseOrigin, Population, trained_parameters


@dataclass(frozen=True)
class Update:
    """Results of a call of `tell`, and what they say about the settings.

    Attributes:
        gradient_norm: Euclidean norm of the gradient estimate, before weight decay.
        update_norm: Euclidean norm of the change of the parameters.
        parameter_norm: Euclidean norm of the parameters after it.
        update_ratio: update norm over the parameters' norm before it. Weights change by about this share per
            generation: near 1, the learning rate is too high for their scale; below 1e-4, training is slow.
        update_cosine: cosine between this update and the previous one, NaN for the first. Near 1, steps agree
            and could be longer; near 0 or below, they are mostly noise: try a larger population or a smaller
            learning rate.
        tied_fraction: share of the members that share their fitness with another member. Near 1, sigma is too
            small to make a difference, or the fitness is too coarse.
        signal_to_noise: see `FlipoutES.tell`; None unless requested.
    """

    gradient_norm: float
    update_norm: float
    parameter_norm: float
    update_ratio: float
    update_cosine: float
    tied_fraction: float
    signal_to_noise: float | None = None


class FlipoutES:
    """An evolution strategy over the parameters of any `nn.Module`.

    Attributes:
        policy: the center; `tell` moves those of its parameters that require a gradient, in place.
        optimizer: any torch.optim optimizer over them that needs no closure.
        population_size: members P per generation.
        sigma: standard deviation of each weight's perturbation; may be changed between generations.
        generation: generations told so far.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        population_size: int,
        sigma: float,
        optimizer: torch.optim.Optimizer | None = None,
        perturbation: Perturbation = Flipout(),  # noqa: B008 - it is frozen
        fitness_shaping: FitnessShaping | Shaping = FITNESS_SHAPING,
        antithetic: bool = True,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Takes the policy.

        Args:
            policy: the module to train. Parameters with `requires_grad=False` stay unchanged.
            population_size: members P per generation, both members of antithetic pairs counted.
            sigma: standard deviation of each weight's perturbation.
            optimizer: built over the policy's parameters; Adam with learning rate 0.01 if None.
            perturbation: the noise family.
            fitness_shaping: "centered_ranks", "standardized", "nes", "raw", or a function from returns [P]
                to utilities [P].
            antithetic: whether members come in pairs of opposite perturbations.
            weight_decay: L2 coefficient: the optimizer follows gradient - weight_decay * parameters.
            seed: seed of the noise of every generation.

        Raises:
            ValueError: if a number is out of range, the policy has nothing to train, or the optimizer misses
                one of its parameters.
        """
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be > 0, got {sigma}")
        if not isinstance(population_size, int) or population_size < 1:
            raise ValueError(f"population_size must be an integer > 0, got {population_size}")
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
        if isinstance(fitness_shaping, str) and fitness_shaping not in SHAPINGS:
            raise ValueError(
                f"fitness_shaping {fitness_shaping!r} is not one of {', '.join(SHAPINGS)}, and not a function"
            )
        if any(isinstance(m, torch.jit.ScriptModule) or hasattr(m, "_orig_mod") for m in policy.modules()):
            raise ValueError("a compiled module hides its operations: pass the policy that was compiled")
        parameters = trained_parameters(policy)
        if not parameters:
            raise ValueError(
                "the policy has no parameter that requires a gradient: there is nothing to train"
            )
        self.policy = policy
        self.optimizer = optimizer or make_optimizer(OPTIMIZER, policy, lr=LEARNING_RATE)
        check_optimizer(self.optimizer, parameters)
        self.population_size = population_size
        self.sigma = sigma
        self.perturbation = perturbation
        self.fitness_shaping = (
            SHAPINGS[fitness_shaping] if isinstance(fitness_shaping, str) else fitness_shaping
        )
        self.antithetic = antithetic
        self.weight_decay = weight_decay
        self.seed = seed
        self.generation = 0
        self._populations: list[Population] = []
        self._last_update: dict[str, Tensor] = {}

    def ask(self) -> Population:
        """Returns the population of this generation; the same one until `tell` is called.

        Further populations from `ask_more` are discarded.

        Raises:
            ValueError: if the noise family does not support this population size.
        """
        del self._populations[1:]
        return self._populations[0] if self._populations else self.ask_more()

    @untracked
    def ask_more(self) -> Population:
        """Returns a further population of this generation, with new noise.

        `tell` then takes the fitness of all of them, in the order of the calls.
        """
        origin = NoiseOrigin(
            self.perturbation,
            self.population_size,
            self.antithetic,
            self.seed,
            self.generation,
            block=len(self._populations),
        )
        population = Population(self.policy, origin.draw(self.policy), self.sigma, origin)
        self._populations.append(population)
        return population

    @untracked
    def tell(self, fitness: Tensor, *, signal_to_noise: bool = False) -> Update:
        """Moves the policy towards the members of higher fitness and ends the generation.

        Args:
            fitness: fitness of each member of the population, [P], higher is better; NaN ranks worst. With
                further populations from `ask_more`, [B P] for B populations in total.
            signal_to_noise: whether to estimate, at the price of a second gradient, how much of the gradient
                estimate is signal: with the estimates g_A and g_B of the two halves of the members,
                (g_A · g_B) / (|g_A - g_B|² / 4), the squared norm of the expected gradient over the summed
                variance of the whole estimate. Below about 0.1 an update is mostly noise. Noise that members
                share (flipout's bases) counts as signal.

        Raises:
            RuntimeError: if there is no population: `ask` was not called.
            ValueError: if there is not one value per member.
        """
        if not self._populations:
            raise RuntimeError("tell needs a population: call ask first")
        fitness = torch.as_tensor(fitness).detach().cpu()
        num_members = self.population_size * len(self._populations)
        if fitness.shape != (num_members,):
            raise ValueError(f"fitness must be [{num_members}], got {list(fitness.shape)}")
        parameters = {name: self.policy.get_parameter(name) for name in self._populations[0].trained}
        utilities = self.fitness_shaping(fitness).to(self._populations[0].noise.device)
        gradient = self._gradient(utilities)
        ratio = self._signal_to_noise(utilities, gradient) if signal_to_noise else None
        before = {name: value.detach().clone() for name, value in parameters.items()}
        for name, value in parameters.items():
            # torch optimizers descend, fitness ascends
            value.grad = self.weight_decay * before[name] - gradient[name]
        self.optimizer.step()
        for value in parameters.values():
            value.grad = None
        self._populations = []
        self.generation += 1
        change = {name: parameters[name].detach() - before[name] for name in before}
        last, self._last_update = self._last_update, change
        update_norm, before_norm = _norm(change), _norm(before)
        return Update(
            gradient_norm=_norm(gradient),
            update_norm=update_norm,
            parameter_norm=_norm(parameters),
            update_ratio=update_norm / before_norm if before_norm else math.inf,
            update_cosine=_cosine(last, change) if last.keys() == change.keys() else math.nan,
            tied_fraction=tied_fraction(fitness),
            signal_to_noise=ratio,
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

    def _signal_to_noise(self, utilities: Tensor, gradient: Mapping[str, Tensor]) -> float:
        # Halves alternate by antithetic pair; the second half's estimate follows from 2 g = g_A + g_B.
        unit = 2 if self.antithetic else 1
        if len(utilities) < 2 * unit:
            return math.nan
        in_first_half = torch.arange(len(utilities), device=utilities.device) // unit % 2 == 0
        first = self._gradient(torch.where(in_first_half, 2 * utilities, 0.0))
        second = {name: 2 * gradient[name] - first[name] for name in first}
        difference = {name: first[name] - second[name] for name in first}
        noise = _norm(difference) ** 2 / 4
        return _dot(first, second) / noise if noise else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next generation depends on, besides the constructor's arguments."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generation": self.generation,
            "sigma": self.sigma,
            "last_update": self._last_update,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state returned by `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generation = state["generation"]
        self.sigma = state["sigma"]
        self._last_update = {
            name: value.to(self.policy.get_parameter(name).device)
            for name, value in state["last_update"].items()
        }
        self._populations = []


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    products = [(one[name].double() * other[name].double()).sum() for name in one]
    return float(torch.stack(products).sum())


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(_dot(tensors, tensors))


def _cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    norms = _norm(one) * _norm(other)
    return _dot(one, other) / norms if norms else math.nan
