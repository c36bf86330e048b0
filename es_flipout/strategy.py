"""FlipoutES: ask for a population, tell its fitness, and the policy improves.

One generation is

    population = es.ask()                   # policy + noise of generation g
    fitness = ...                           # of every member, [P]: your function, or a player
    update = es.tell(fitness)               # utilities -> gradient estimate -> optimizer step
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from es_flipout.choices import ELITE_FRACTION, FITNESS_SHAPING, LEARNING_RATE, OPTIMIZER, FitnessShaping
from es_flipout.elites import elite_members, elite_utilities
from es_flipout.estimate import mean_gradient, mean_magnitudes
from es_flipout.estimate import signal_to_noise as signal_to_noise_of
from es_flipout.fitness import Shaping, as_fitness, as_shaping, tied_fraction
from es_flipout.optimizers import check_optimizer, follow_policy, load_state, make_optimizer, with_frozen
from es_flipout.parameters import (
    changed_parameter,
    check_policy,
    check_trained,
    check_unchanged,
    first_not_finite,
    padding_entries,
    trained_parameters,
)
from es_flipout.perturbations import ComputeTiles, Flipout, Perturbation, compute_here
from es_flipout.perturbations.module_copy import copy_state, deep_copy
from es_flipout.perturbations.torch_modes import untracked
from es_flipout.population import NoiseOrigin, Population
from es_flipout.settings import integer, number, shown
from es_flipout.sigma_adaptation import SigmaAdaptation, mean_scale, scales_for
from es_flipout.update import Update, cosine, norm, take_step


class FlipoutES:
    """An evolution strategy over the parameters of any `nn.Module`.

    Attributes:
        policy: the center; `tell` moves those of its parameters that require a gradient, in place.
        optimizer: any torch.optim optimizer over them that needs no closure.
        population_size: members P per generation.
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
        elite_fraction: float = ELITE_FRACTION,
        antithetic: bool = True,
        sigma_adaptation: SigmaAdaptation | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        compute_tiles: ComputeTiles = compute_here,
    ) -> None:
        """Takes the policy.

        Args:
            policy: the module to train. Parameters with `requires_grad=False` stay unchanged.
            population_size: members P per generation, both members of antithetic pairs counted.
            sigma: standard deviation of each weight's perturbation (the initial one, if it adapts).
            optimizer: built over the policy's parameters; Adam with learning rate 0.01 if None.
            perturbation: the noise family.
            fitness_shaping: "centered_ranks", "standardized", "nes", "raw", or a function from returns [P]
                to utilities [P].
            elite_fraction: share of the antithetic pairs (without them, of the members) that the update is
                made of: those with the best members, as in ARS (see `elites`). Only their fitness is shaped.
            antithetic: whether members come in pairs of opposite perturbations.
            sigma_adaptation: how each weight's standard deviation follows the fitness; None if it does not.
                With flipout it needs a Gaussian base and several bases; LowRank cannot have it.
            weight_decay: L2 coefficient: the optimizer follows gradient - weight_decay * parameters.
            seed: seed of the noise of every generation.
            compute_tiles: computes the parts of the gradient estimate, of all populations in one call. It may
                share them out between processes; by default, all are computed here.

        Raises:
            TypeError: if the policy is no module, or the optimizer no optimizer.
            ValueError: if a number is out of range, the policy has nothing to train or something that cannot
                be, or the optimizer misses one of its parameters.
        """
        self._sigma = number("sigma", sigma, positive=True)
        check_policy(policy)
        self.policy = policy
        self.population_size = population_size
        self.perturbation = perturbation
        self.fitness_shaping = fitness_shaping
        self.elite_fraction = elite_fraction
        self.antithetic = antithetic
        self.sigma_adaptation = sigma_adaptation
        self.weight_decay = weight_decay
        self.seed = seed
        self.compute_tiles = compute_tiles
        self.generation = 0
        self._check_settings()
        self._default_optimizer: torch.optim.Optimizer | None = None
        if optimizer is None:
            optimizer = make_optimizer(OPTIMIZER, policy, lr=LEARNING_RATE, frozen=True)
            self._default_optimizer = optimizer
        self.optimizer = optimizer
        check_optimizer(optimizer, trained_parameters(policy))
        self._populations: list[Population] = []
        self._parameters: dict[str, nn.Parameter] = {}  # trained by the populations asked for
        self._last_update: dict[str, Tensor] = {}
        self._sigma_scales: dict[str, Tensor] = {}

    @property
    def sigma(self) -> float:
        """Standard deviation of the perturbations, >= 0; may be changed between generations.

        If it adapts, each weight's standard deviation is this value times an entry of `sigma_scales`.
        """
        return self._sigma

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        self._sigma = number("sigma", sigma)

    @property
    def sigma_scales(self) -> Mapping[str, Tensor]:
        """Factor of sigma for each weight, by name of the parameter; empty if sigma does not adapt."""
        return self._sigma_scales

    @property
    def mean_sigma(self) -> float:
        """Standard deviation of a perturbation, as the root mean square over all weights."""
        return self.sigma * mean_scale(self._sigma_scales)

    def _check_settings(self) -> None:
        """Checks the constructor's arguments, which are attributes that anyone may change later.

        Raises:
            ValueError: if one of them cannot be used.
        """
        self.population_size = integer("population_size", self.population_size, positive=True)
        self.seed = integer("seed", self.seed)
        self.weight_decay = number("weight_decay", self.weight_decay)
        self.elite_fraction = number("elite_fraction", self.elite_fraction, positive=True)
        if self.elite_fraction > 1:
            raise ValueError(f"elite_fraction must be in (0, 1], got {self.elite_fraction}")
        if not isinstance(self.antithetic, bool | np.bool_):
            raise ValueError(f"antithetic must be True or False, got {self.antithetic!r}")
        if not isinstance(self.perturbation, Perturbation):
            raise ValueError(
                "perturbation must be a Perturbation such as Flipout(), LowRank() or Independent(), got "
                f"{self.perturbation!r:.80}"
            )
        if self.sigma_adaptation is not None:
            if not isinstance(self.sigma_adaptation, SigmaAdaptation):
                raise ValueError(
                    f"sigma_adaptation must be a SigmaAdaptation or None, got {self.sigma_adaptation!r:.80}"
                )
            self.perturbation.check_rescaling()
        self.fitness_shaping = as_shaping(self.fitness_shaping)

    def ask(self) -> Population:
        """Returns the population of this generation; the same one until `tell` is called.

        Further populations from `ask_more` are discarded. If parameters of the policy have been frozen,
        unfrozen or replaced since the last call, the population is drawn anew for those trained now.

        Raises:
            ValueError: if the noise family does not support this population size, or settings, the policy or
                the optimizer have been changed to something that the constructor refuses.
        """
        del self._populations[1:]
        if changed_parameter(self._parameters, self.policy) is not None:
            self._populations = []
        return self._populations[0] if self._populations else self.ask_more()

    @untracked
    def ask_more(self) -> Population:
        """Returns a further population of this generation, with new noise.

        `tell` then takes the fitness of all of them, in the order of the calls.
        """
        self._check_settings()
        if self._populations:
            check_unchanged(self._parameters, self.policy)
        else:
            self._follow_policy()
            self._follow_adaptation()
        origin = NoiseOrigin(
            self.perturbation,
            self.population_size,
            bool(self.antithetic),
            self.seed,
            self.generation,
            block=len(self._populations),
            scales=self._sigma_scales,
        )
        population = Population(self.policy, origin.draw(self.policy), self.sigma, origin)
        self._populations.append(population)
        return population

    def _follow_policy(self) -> None:
        """Takes the parameters that are to be trained now, and sees that the optimizer has them."""
        parameters = trained_parameters(self.policy)
        check_trained(parameters)
        if self.optimizer is self._default_optimizer and len(self.optimizer.param_groups) == 1:
            follow_policy(self.optimizer, self.policy)
        check_optimizer(self.optimizer, parameters)
        self._parameters = parameters

    def _follow_adaptation(self) -> None:
        """Has a scale for every weight that is trained now, if sigma adapts: 1 for those that had none."""
        if self.sigma_adaptation is None:
            self._sigma_scales = {}
            return
        self._sigma_scales = scales_for(self._parameters, self._sigma_scales)

    @untracked
    def tell(self, fitness: Any, *, signal_to_noise: bool = False) -> Update:
        """Moves the policy towards the members of higher fitness and ends the generation.

        The optimizer finds the gradient in each parameter's `.grad`, after the hooks that are registered on
        the parameter. An error leaves the parameters and the optimizer's state as they were and the
        generation open, so that `tell` can be called again.

        Args:
            fitness: fitness of each member of the population, [P], higher is better; NaN ranks worst. A
                tensor, an array, or an iterable of numbers. With further populations from `ask_more`, [B P]
                for B populations in total.
            signal_to_noise: whether to estimate, at the price of a second gradient, how much of the gradient
                estimate is signal: with the estimates g_A and g_B of the two halves of the members (of the
                elites), (g_A · g_B) / (|g_A - g_B|² / 4), the squared norm of the expected gradient over the
                summed variance of the whole estimate. Below about 0.1 an update is mostly noise. Noise that
                members share (flipout's bases) counts as signal.

        Raises:
            RuntimeError: if there is no population: `ask` was not called.
            TypeError: if the fitness is not made of real numbers.
            ValueError: if there is not one value per member, if the update would not be finite, or if the
                trained parameters are no longer those of `ask`.
        """
        if not self._populations:
            raise RuntimeError("tell needs a population: call ask first")
        self._check_settings()
        check_unchanged(self._parameters, self.policy)
        check_optimizer(self.optimizer, self._parameters)
        fitness = as_fitness(fitness, sum(population.size for population in self._populations))
        populations, parameters = self._populations, self._parameters
        tied = tied_fraction(fitness)
        noise = populations[0].noise
        elites = elite_members(fitness, self.elite_fraction, antithetic=noise.antithetic)
        shaping: Any = self.fitness_shaping
        utilities = elite_utilities(shaping, fitness, elites).to(noise.device)
        gradient = mean_gradient(populations, utilities, self.compute_tiles)
        gradient_norm = norm(gradient)
        if not math.isfinite(gradient_norm):
            name = first_not_finite(gradient) or next(iter(gradient))
            raise ValueError(
                f"the gradient estimate is not finite, first for {name!r}: for {gradient[name].dtype}, the "
                f"utilities are too large or sigma ({populations[0].sigma:g}) is too small"
            )
        ratio = None
        if signal_to_noise:
            ratio = signal_to_noise_of(populations, utilities, gradient, elites, self.compute_tiles)
        scales = self._adapted(populations, utilities, len(elites))
        before = {name: value.detach().clone() for name, value in parameters.items()}
        # torch optimizers descend, fitness ascends
        descent = {name: self.weight_decay * before[name] - gradient[name] for name in parameters}
        for name, entry in padding_entries(self.policy).items():
            descent[name][entry] = 0
        parameter_norm = take_step(self.optimizer, parameters, descent, before)
        self._sigma_scales = scales
        self._populations = []
        self.generation += 1
        change = {name: parameters[name].detach() - before[name] for name in before}
        last, self._last_update = self._last_update, change
        update_norm, before_norm = norm(change), norm(before)
        return Update(
            gradient_norm=gradient_norm,
            update_norm=update_norm,
            parameter_norm=parameter_norm,
            update_ratio=update_norm / before_norm if before_norm else math.inf,
            update_cosine=cosine(last, change),
            tied_fraction=tied,
            signal_to_noise=ratio,
        )

    def _adapted(
        self, populations: list[Population], utilities: Tensor, num_elites: int
    ) -> dict[str, Tensor]:
        """Returns the scales of the next generation."""
        scales = self._sigma_scales
        if self.sigma_adaptation is None or not scales or populations[0].sigma == 0:  # no member differs
            return scales
        magnitudes = mean_magnitudes(populations, utilities, self.compute_tiles)
        return self.sigma_adaptation.updated(scales, magnitudes, num_elites)

    def __deepcopy__(self, memo: dict[int, Any]) -> FlipoutES:
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(deep_copy(vars(self), memo))
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next generation depends on, besides the constructor's arguments.

        It is a copy: later generations do not change it.
        """
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generation": self.generation,
            "sigma": self.sigma,
            "sigma_scales": self._sigma_scales,
            "last_update": self._last_update,
        }
        copied: dict[str, Any] = copy_state(state)
        return copied

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a copy of a state returned by `state_dict`; if that fails, nothing is changed.

        Raises:
            ValueError: if a part of the state is missing, or does not fit the optimizer.
            RuntimeError: if it does not fit the policy.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"the state must be what state_dict returned, got {shown(state)}")
        before = self.state_dict()
        state = {"sigma_scales": {}, **state}  # which earlier versions did not have
        missing = [name for name in before if name not in state]
        if missing:
            raise ValueError(f"the state lacks {', '.join(map(repr, missing))}: it needs {', '.join(before)}")
        try:
            self._load(copy_state({name: state[name] for name in before}))
        except Exception:
            self._load(before)
            raise
        self._populations = []

    def _load(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        optimizer = state["optimizer"]
        if self.optimizer is self._default_optimizer:
            optimizer = with_frozen(optimizer, self.optimizer)
        load_state(self.optimizer, optimizer)
        self.generation = integer("generation", state["generation"])
        self.sigma = state["sigma"]
        self._sigma_scales = dict(state["sigma_scales"])
        self._last_update = {
            name: value.to(self.policy.get_parameter(name).device)
            for name, value in state["last_update"].items()
        }
