"""Population: a policy and the noise of a generation; any members, side by side, in one forward."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.parameters import padding_entries, trained_parameters
from es_flipout.perturbations import (
    ComputeTiles,
    MemberRows,
    Perturbation,
    PopulationNoise,
    Tile,
    compute_here,
    copy_module,
)
from es_flipout.perturbations.module_copy import deep_copy
from es_flipout.perturbations.torch_modes import eagerly, untracked
from es_flipout.seeding import torch_generator


@dataclass(frozen=True)
class NoiseOrigin:
    """All that determines a population's noise besides the policy: any process can draw it again.

    Attributes:
        perturbation: the noise family.
        population_size: members P.
        antithetic: whether members come in pairs of opposite noise.
        seed: the seed of the strategy.
        generation: the generation.
        block: which of that generation's populations.
        scales: factors of the noise of every weight, by name of the parameter, each of its shape; empty if
            all are 1.
    """

    perturbation: Perturbation
    population_size: int
    antithetic: bool
    seed: int
    generation: int
    block: int
    scales: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @untracked
    def draw(self, policy: nn.Module) -> PopulationNoise:
        """Returns the noise for the trained parameters of a policy, on their device.

        Raises:
            ValueError: if the noise family does not support this population size.
        """
        parameters = trained_parameters(policy)
        device = next(iter(parameters.values())).device
        generator = torch_generator(self.seed, self.generation, "perturbation", self.block, device=device)
        noise = self.perturbation.sample(
            parameters, self.population_size, generator, antithetic=self.antithetic
        )
        noise.pin(padding_entries(policy))
        if self.scales:
            noise.rescale(self.scales)
        return noise


class Population:
    """All P members of one generation.

    Its members are the policy plus noise, wherever the policy is: `tell` moves the policy, and with it every
    member of a population that is kept. Copies and pickles contain the policy.

    Attributes:
        policy: the unperturbed policy (the center); any module whose operations have rules.
        noise: the perturbations of the generation.
        sigma: standard deviation of each weight's perturbation.
        origin: what determines the noise; None if it was drawn in some other way.
        trained: names of the perturbed parameters.
    """

    def __init__(
        self, policy: nn.Module, noise: PopulationNoise, sigma: float, origin: NoiseOrigin | None = None
    ) -> None:
        self.policy = policy
        self.noise = noise
        self.sigma = sigma
        self.origin = origin
        self.trained = list(trained_parameters(policy))
        self._all: MemberRows | None = None
        self._all_state: tuple[list[Any], list[Any]] = [], []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_all": None, "_all_state": ([], [])}

    def __deepcopy__(self, memo: dict[int, Any]) -> Population:
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(deep_copy(self.__getstate__(), memo))
        return twin

    @property
    def size(self) -> int:
        """Number of members P."""
        return self.noise.population_size

    def __len__(self) -> int:
        """Number of members P."""
        return self.size

    def __call__(self, *inputs: Any, members: Tensor | None = None) -> Any:
        """Runs members side by side: row n of the result is `module(members[n])(row n of the inputs)`.

        Args:
            inputs: arguments of the policy's forward with a leading row dimension: [N, ...].
            members: the member of each row, int64 [N], repeats allowed; 0 .. P - 1 if None.

        Returns:
            The outputs of the policy's forward, with that leading dimension: [N, ...].

        Raises:
            ValueError: if the inputs do not have one row per member.
            IndexError: if there is no such member.
            UnsupportedOperationError: if the policy uses a parameter in an operation that has no rule.
        """
        return eagerly(self._call, *inputs, members=members)

    def _call(self, *inputs: Any, members: Tensor | None) -> Any:
        if members is not None:
            return self.select(members).each(*inputs)
        state = self._state()
        if self._all is None or not _is_same(state, self._all_state):
            self._all, self._all_state = self.select(torch.arange(self.size)), state
        return self._all.each(*inputs)

    def _state(self) -> tuple[list[Any], list[Any]]:
        """Returns objects and values that stay the same while the policy is as it was copied.

        A copy shares the policy's tensors and their memory, and has attributes and hooks of its own.
        """
        objects: list[Any] = []
        tensors: list[Tensor | None] = []
        for part in self.policy.modules():
            objects += (
                *vars(part).values(),
                *part._forward_pre_hooks.values(),
                *part._forward_hooks.values(),
            )
            tensors += (*part._parameters.values(), *part._buffers.values())
        memory = [each.data_ptr() for each in tensors if each is not None and each.layout == torch.strided]
        return objects + tensors, [self.sigma, *memory]

    def select(self, members: Tensor) -> MemberRows:
        """Returns the policy in which row n runs as member `members[n]` (int64 [N], repeats allowed).

        Raises:
            IndexError: if there is no such member.
            TypeError: if these are no integers, or a part of the policy cannot be copied.
        """
        members = torch.as_tensor(members)
        if members.numel() and (members.dtype == torch.bool or members.is_floating_point()):
            raise TypeError(f"members must be the indices of members, integers: got {members.dtype}")
        return MemberRows(self.policy, self.trained, self.noise, self.sigma, members.to(torch.int64))

    @untracked
    def member(self, index: int) -> dict[str, Tensor]:
        """Returns the state dict of one member: its own weights, and everything that members share.

        Raises:
            IndexError: if there is no such member.
        """
        if not 0 <= operator.index(index) < self.size:
            raise IndexError(f"member {index} of a population of {self.size}")
        noise = self.noise.member(index)
        by_parameter = {
            id(self.policy.get_parameter(name)): self.policy.get_parameter(name) + self.sigma * noise[name]
            for name in self.trained
        }
        state: dict[str, Tensor] = self.policy.state_dict(keep_vars=True)
        return {
            name: by_parameter.get(id(value), value.detach() if isinstance(value, Tensor) else value)
            for name, value in state.items()
        }

    @untracked
    def module(self, index: int) -> nn.Module:
        """Returns one member as an ordinary module: a copy of the policy that shares nothing with it.

        Raises:
            IndexError: if there is no such member.
        """
        module = copy_module(self.policy)
        module.load_state_dict(self.member(index))
        for part in module.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()  # cuDNN wants that, and deepcopy undoes it
        return module

    @untracked
    def gradient(self, utilities: Tensor, compute_tiles: ComputeTiles = compute_here) -> dict[str, Tensor]:
        """Returns the estimated ascent direction of the fitness, by name of the trained parameter.

        g = 1 / (P sigma) Σ_m u_m eps_m (Salimans, Ho, Chen, Sidor and Sutskever, 2017, arXiv 1703.03864).
        It is zero if sigma is, for then all members are equal.

        Args:
            utilities: shaped fitness of every member, [P].
            compute_tiles: computes the tiles of the sum.

        Raises:
            ValueError: if there is not one utility per member.
        """
        return self.gradient_from(iter(compute_tiles(self.gradient_tiles(utilities))))

    def gradient_tiles(self, utilities: Tensor) -> list[Tile]:
        """Returns the tiles of the sum in `gradient`, none if sigma is zero.

        Args:
            utilities: shaped fitness of every member, [P].

        Raises:
            ValueError: if there is not one utility per member.
        """
        self._check(utilities)
        return self.noise.tiles(utilities.to(self.noise.device)) if self.sigma else []

    def _check(self, utilities: Tensor) -> None:
        if utilities.shape != (self.size,):
            raise ValueError(f"utilities must be [{self.size}], got {list(utilities.shape)}")

    def gradient_from(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        """Takes the values of all `gradient_tiles` from `values`, and returns the `gradient`."""
        if self.sigma == 0:
            return {name: torch.zeros_like(self.policy.get_parameter(name)) for name in self.trained}
        total = self.noise.assembled(values)
        return {name: total[name] / (self.size * self.sigma) for name in self.trained}

    def magnitude_tiles(self, utilities: Tensor) -> list[Tile]:
        """Returns the tiles of the sum in `magnitudes_from`; see `gradient_tiles`."""
        self._check(utilities)
        return self.noise.tiles(utilities.to(self.noise.device), squared=True)

    def magnitudes_from(self, utilities: Tensor, values: Iterator[Tensor]) -> dict[str, Tensor]:
        """Returns which weights' noise should be larger (> 0) or smaller, by name of the trained parameter.

        S = 1 / P Σ_m u_m (z_m² - 1), of the noise z_m = eps_m / scale, which has unit variance.

        Args:
            utilities: shaped fitness of every member, [P].
            values: of all `magnitude_tiles`, which are taken from it.
        """
        total, sum_of_utilities = self.noise.assembled(values), utilities.sum()
        scales = self.origin.scales if self.origin is not None else {}
        squares = {
            name: total[name] / scales[name].square() if scales else total[name] for name in self.trained
        }
        return {name: (squares[name] - sum_of_utilities) / self.size for name in self.trained}


def _is_same(one: tuple[list[Any], list[Any]], other: tuple[list[Any], list[Any]]) -> bool:
    """Returns whether two states of a policy consist of the same objects and equal values."""
    same_size = len(one[0]) == len(other[0])
    return same_size and one[1] == other[1] and all(map(operator.is_, one[0], other[0]))
