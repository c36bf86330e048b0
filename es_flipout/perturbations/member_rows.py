"""A policy whose row n runs with the weights of its own member, all rows in one forward."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from es_flipout.perturbations.base import PopulationNoise
from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.perturbed_parameter import PerturbedParameter
from es_flipout.perturbations.torch_modes import eagerly, untracked


class MemberRows:
    """A policy whose row n runs with the weights of member n of a selection.

    It shares the policy's parameters and buffers and nothing else, so several selections may run at the same
    time. If the policy's modules change, make a new one.

    Attributes:
        num_rows: rows N of the selection.
    """

    def __init__(
        self,
        policy: nn.Module,
        perturbed: Iterable[str],
        noise: PopulationNoise,
        sigma: float,
        members: Tensor,
    ) -> None:
        """Selects the first members.

        Args:
            policy: the center.
            perturbed: names of the perturbed parameters.
            noise: the noise of all members of the population.
            sigma: scale of the noise.
            members: member of each row, int64 [N].

        Raises:
            IndexError: if there is no such member.
        """
        self._population_noise, self._sigma = noise, sigma
        self._parameters = {
            name: PerturbedParameter.of(name, policy.get_parameter(name)) for name in perturbed
        }
        # A copy in which every reference to a perturbed parameter, tied or not, is replaced.
        memo: dict[int, Tensor] = {id(tensor): tensor for tensor in [*policy.parameters(), *policy.buffers()]}
        memo |= {id(policy.get_parameter(name)): parameter for name, parameter in self._parameters.items()}
        self._policy = copy.deepcopy(policy, memo)
        self._row_wise = bool(getattr(policy, "row_wise", False))
        self.select(members)

    @untracked
    def select(self, members: Tensor, *, grouped: bool = False) -> None:
        """Selects other members, int64 [N], of any number.

        Args:
            members: their indices.
            grouped: whether they are known to exist and to be in groups; see `PopulationNoise.rows`.

        Raises:
            IndexError: if there is no such member; undefined behavior on a GPU.
        """
        if not grouped:
            self._check(members)
        noise = self._population_noise
        self.num_rows = len(members)
        self._noise = noise.rows(members.to(noise.device), self._sigma, grouped=grouped)
        for name, parameter in self._parameters.items():
            parameter.noise = self._noise[name]

    @untracked
    def assign(self, rows: Tensor, members: Tensor) -> None:
        """Gives rows (int64 [M]) to other members (int64 [M]); the other rows keep theirs.

        Raises:
            IndexError: if there is no such member or row.
        """
        self._check(members)
        device = self._population_noise.device
        self._noise.assign(rows.to(device), members.to(device))

    def _check(self, members: Tensor) -> None:
        if members.device.type != "cpu" or len(members) == 0:
            return  # reading them would mean waiting for the device
        size = self._population_noise.population_size
        lowest, highest = (int(bound) for bound in members.aminmax())
        if lowest < 0 or highest >= size:
            index = lowest if lowest < 0 else highest
            raise IndexError(f"member {index} of a population of {size}")

    def __call__(self, *inputs: Any) -> Any:
        """Runs the policy on a batch, each row with its own member's weights.

        Args:
            inputs: arguments of the policy's forward: tensors [N, ...], or containers of them.

        Returns:
            The outputs of the policy's forward, tensors [N, ...].
        """
        if self._row_wise:
            return self.each(*inputs)
        # A single member is a batch of one.
        outputs = self.each(*tree_map(lambda x: x.unsqueeze(1), inputs))
        return tree_map(lambda x: x.squeeze(1) if isinstance(x, Tensor) else x, outputs)

    def each(self, *inputs: Any) -> Any:
        """Runs every member on its own: row n of the result is module(member n)(row n of the inputs).

        Args:
            inputs: tensors [N, ...], or containers of them.

        Raises:
            ValueError: if a tensor does not have one row per member.
        """
        return eagerly(self._run, *inputs)

    @torch.no_grad()
    def _run(self, *inputs: Any) -> Any:
        for leaf in tree_leaves(inputs):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != self.num_rows:
                found = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise ValueError(
                    f"inputs must be tensors of {self.num_rows} rows, one per member: got {found}"
                )
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
        for parameter in self._parameters.values():
            parameter.context = context


def _written_out(outputs: Any) -> Any:
    """Returns a policy's outputs with parameters among them (a log standard deviation, say) written out."""
    if type(outputs) is Tensor:
        return outputs
    return tree_map(lambda x: x.written_out() if isinstance(x, PerturbedParameter) else x, outputs)
