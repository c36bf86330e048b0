"""Population: a policy and the noise of a generation; any members, side by side, in one forward."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from es_flipout.perturbations import MemberContext, Perturbation, PerturbedParameter, PopulationNoise
from es_flipout.seeding import torch_generator

Method = TypeVar("Method", bound=Callable[..., Any])


def untracked(method: Method) -> Method:
    """Runs a method without autograd, and outside any inference mode: the tensors it makes outlive that."""
    return torch.inference_mode(mode=False)(torch.no_grad()(method))


def trained_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are searched, by name: those that require a gradient."""
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}


def eagerly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function that torch.compile is to leave out: it goes on behind it."""
    if torch.compiler.is_compiling():
        return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
    return function(*args, **kwargs)


class MemberRows:
    """A policy whose row n runs with the weights of member n of a selection.

    It shares the policy's parameters and buffers, and nothing else, so that several selections may run at the
    same time. Once the policy has changed, make another.
    """

    def __init__(self, population: Population, members: Tensor) -> None:
        self._population = population
        policy = population.policy
        self._stand_ins = {
            name: PerturbedParameter.of(name, policy.get_parameter(name)) for name in population.trained
        }
        # A copy in which every reference to a trained parameter, tied or not, is to its stand-in.
        memo: dict[int, Tensor] = {id(tensor): tensor for tensor in [*policy.parameters(), *policy.buffers()]}
        memo |= {id(policy.get_parameter(name)): stand_in for name, stand_in in self._stand_ins.items()}
        self._policy = copy.deepcopy(policy, memo)
        self._row_wise = bool(getattr(policy, "row_wise", False))
        self.select(members)

    @untracked
    def select(self, members: Tensor, *, grouped: bool = False) -> None:
        """Makes it a selection of other members, int64 [N], of any number.

        Args:
            members: their indices.
            grouped: whether they are known to exist, and to be in groups; see `PopulationNoise.rows`.

        Raises:
            IndexError: if there is no such member; on a GPU, what happens then is undefined.
        """
        if not grouped:
            self._check(members)
        noise = self._population.noise
        self.num_rows = len(members)
        self._noise = noise.rows(members.to(noise.device), self._population.sigma, grouped=grouped)
        for name, stand_in in self._stand_ins.items():
            stand_in.noise = self._noise[name]

    @untracked
    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Hands rows (int64 [M]) over to other members (int64 [M]); the other rows keep theirs.

        Raises:
            IndexError: if there is no such member or row.
        """
        self._check(members)
        device = self._population.noise.device
        self._noise.assign(rows.to(device), members.to(device))

    def _check(self, members: Tensor) -> None:
        if members.device.type != "cpu" or len(members) == 0:
            return  # to look would be to wait for the device
        lowest, highest = (int(bound) for bound in members.aminmax())
        if lowest < 0 or highest >= self._population.size:
            index = lowest if lowest < 0 else highest
            raise IndexError(f"member {index} of a population of {self._population.size}")

    def __call__(self, *inputs: Any) -> Any:
        """Runs the policy on a batch, each row under its own member's weights.

        Args:
            inputs: what the policy's forward takes: tensors [N, ...], or containers of them.

        Returns:
            What the policy's forward returns, its tensors [N, ...].
        """
        if self._row_wise:
            return self.each(*inputs)
        # A member by itself is a batch of one.
        outputs = self.each(*tree_map(lambda x: x.unsqueeze(1), inputs))
        return tree_map(lambda x: x.squeeze(1) if isinstance(x, Tensor) else x, outputs)

    def each(self, *inputs: Any) -> Any:
        """Runs every member on its own: row n of the result is module(member n)(row n of the inputs).

        Args:
            inputs: tensors [N, ...], or containers of them.

        Raises:
            ValueError: if a tensor has not one row a member.
        """
        return eagerly(self._run, *inputs)

    @torch.no_grad()
    def _run(self, *inputs: Any) -> Any:
        for leaf in tree_leaves(inputs):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != self.num_rows:
                found = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise ValueError(f"inputs must be tensors of {self.num_rows} rows, one a member: got {found}")
        if self._row_wise:
            self._enter(MemberContext(self.num_rows, level=None))
            return _written_out(self._policy(*inputs))
        structure: TreeSpec | None = None
        constants: list[Any] = []

        def run_one(*inputs: Any) -> tuple[Tensor, ...]:
            nonlocal structure, constants
            self._enter(MemberContext.inside_vmap(self.num_rows))
            constants, structure = tree_flatten(_written_out(self._policy(*inputs)))
            return tuple(leaf for leaf in constants if isinstance(leaf, Tensor))

        tensors = iter(torch.vmap(run_one, randomness="different")(*inputs))
        assert structure is not None
        leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in constants]
        return tree_unflatten(leaves, structure)

    def _enter(self, context: MemberContext) -> None:
        for stand_in in self._stand_ins.values():
            stand_in.context = context


def _written_out(outputs: Any) -> Any:
    """Returns what a policy returned, a parameter among it (such as a log standard deviation) row by row."""
    if type(outputs) is Tensor:
        return outputs
    return tree_map(lambda x: x.written_out() if isinstance(x, PerturbedParameter) else x, outputs)


@dataclass(frozen=True)
class NoiseOrigin:
    """All that a population's noise follows from, besides the policy: any process can draw it again.

    Attributes:
        perturbation: the noise family.
        population_size: members P.
        antithetic: whether members come in pairs of opposite noise.
        seed: the seed of the strategy.
        generation: the generation.
        block: which of that generation's populations.
    """

    perturbation: Perturbation
    population_size: int
    antithetic: bool
    seed: int
    generation: int
    block: int

    @untracked
    def draw(self, policy: nn.Module) -> PopulationNoise:
        """Returns the noise for the trained parameters of a policy, on their device.

        Raises:
            ValueError: if the noise family cannot serve this population size.
        """
        parameters = trained_parameters(policy)
        device = next(iter(parameters.values())).device
        generator = torch_generator(self.seed, self.generation, "perturbation", self.block, device=device)
        return self.perturbation.sample(
            parameters, self.population_size, generator, antithetic=self.antithetic
        )


class Population:
    """All P members of one generation.

    Attributes:
        policy: the unperturbed policy (the center); any module whose operations have rules.
        noise: the perturbations of the generation.
        sigma: standard deviation of a weight's perturbation.
        origin: what the noise follows from; None if it was drawn in some other way.
        trained: names of the parameters that are perturbed.
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
        self._all_state: list[Any] = []

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
            inputs: what the policy's forward takes, with one leading row a member more: [N, ...].
            members: the member of each row, int64 [N], repeats allowed; 0 .. P - 1 if None.

        Returns:
            What the policy's forward returns, with that leading row: [N, ...].

        Raises:
            ValueError: if the inputs have not one row a member.
            IndexError: if there is no such member.
            UnsupportedOperationError: if the policy uses a parameter in an operation that has no rule.
        """
        return eagerly(self._call, *inputs, members=members)

    def _call(self, *inputs: Any, members: Tensor | None) -> Any:
        if members is not None:
            return self.select(members).each(*inputs)
        state = self._state()
        if self._all is None or self._all_state != state:
            self._all, self._all_state = self.select(torch.arange(self.size)), state
        return self._all.each(*inputs)

    def _state(self) -> list[Any]:
        """Returns what tells whether the policy is still as it was copied; tensors are shared with a copy."""
        policy = self.policy
        tensors = [id(tensor) for tensor in itertools.chain(policy.parameters(), policy.buffers())]
        return [self.sigma, *tensors, *((module.training, id(module)) for module in policy.modules())]

    def select(self, members: Tensor) -> MemberRows:
        """Returns the policy in which row n runs as member `members[n]` (int64 [N], repeats allowed).

        Raises:
            IndexError: if there is no such member.
        """
        return MemberRows(self, torch.as_tensor(members, dtype=torch.int64))

    @untracked
    def member(self, index: int) -> dict[str, Tensor]:
        """Returns the state dict of one member: its own weights, and everything that members share.

        Raises:
            IndexError: if there is no such member.
        """
        if not 0 <= index < self.size:
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
        module = copy.deepcopy(self.policy)
        module.load_state_dict(self.member(index))
        for part in module.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()  # which a copy's are not; cuDNN wants them so
        return module

    @untracked
    def gradient(self, utilities: Tensor) -> dict[str, Tensor]:
        """Returns the estimated ascent direction of the fitness, by name of the trained parameter.

        g = 1 / (P sigma) Σ_m u_m eps_m (Salimans, Ho, Chen, Sidor and Sutskever, 2017, arXiv 1703.03864).

        Args:
            utilities: shaped fitness of every member, [P].

        Raises:
            ValueError: if there is not one utility a member.
        """
        if utilities.shape != (self.size,):
            raise ValueError(f"utilities must be [{self.size}], got {list(utilities.shape)}")
        total = self.noise.weighted_sum(utilities.to(self.noise.device))
        return {name: total[name] / (self.size * self.sigma) for name in self.trained}
