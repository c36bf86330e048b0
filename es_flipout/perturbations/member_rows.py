"""A policy whose row n runs with the weights of its own member, all rows in one forward."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from es_flipout.perturbations.base import PopulationNoise
from es_flipout.perturbations.each_row import check_outputs, each_row, written_out
from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.module_copy import copy_module
from es_flipout.perturbations.perturbed_parameter import PerturbedParameter
from es_flipout.perturbations.torch_modes import eagerly, untracked


class MemberRows:
    """A policy whose row n runs with the weights of member n of a selection.

    It shares the policy's parameters and buffers and nothing else, so several selections may run at the same
    time. If the policy's modules change, make a new one. Copies and pickles contain the policy.

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
            TypeError: if a part of the policy cannot be copied.
        """
        self._center, self._population_noise, self._sigma = policy, noise, sigma
        self._parameters = {
            name: PerturbedParameter.of(name, policy.get_parameter(name).detach()) for name in perturbed
        }
        # A copy in which every reference to a perturbed parameter, tied or not, is replaced.
        memo: dict[int, Tensor] = {id(tensor): tensor for tensor in [*policy.parameters(), *policy.buffers()]}
        memo |= {id(policy.get_parameter(name)): parameter for name, parameter in self._parameters.items()}
        self._policy = copy_module(policy, memo)
        self._row_wise = bool(getattr(policy, "row_wise", False))
        self.select(members)

    def __reduce__(self) -> tuple[Any, ...]:
        names = tuple(self._parameters)
        return MemberRows, (self._center, names, self._population_noise, self._sigma, self._members)

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
        self.num_rows, self._members = len(members), members.clone()
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
        self._members[rows] = members.to(self._members.device)

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
        return tree_map(_without_batch, eagerly(self._run, inputs, True))

    def each(self, *inputs: Any) -> Any:
        """Runs every member on its own: row n of the result is module(member n)(row n of the inputs).

        Args:
            inputs: tensors [N, ...], or containers of them.

        Raises:
            TypeError: if the policy returns anything other than tensors, constants and containers of them.
            ValueError: if a tensor does not have one row per member.
        """
        return eagerly(self._run, inputs, False)

    @torch.no_grad()
    def _run(self, inputs: tuple[Any, ...], as_batches: bool) -> Any:
        """Runs the policy, in which each member sees its row, or a batch of this row alone."""
        for leaf in tree_leaves(inputs):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != self.num_rows:
                found = repr(leaf) if isinstance(leaf, Number | str) else f"an object of {type(leaf)}"
                found = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else found
                raise ValueError(
                    f"inputs must be tensors of {self.num_rows} rows, one per member: got {found}"
                )
        if as_batches:
            inputs = tree_map(lambda x: x.unsqueeze(1), inputs)
        if self._row_wise:
            context = MemberContext(self.num_rows, level=None)
            for parameter in self._parameters.values():
                parameter.context = context
            outputs = written_out(self._policy(*inputs))
            if type(outputs) is not Tensor or outputs.shape[:1] != (self.num_rows,):
                self._check_rows(outputs)
            return outputs
        parameters = self._parameters.values()
        return each_row(self._policy, inputs, 0, parameters, self.num_rows, as_batches=as_batches)

    def _check_rows(self, outputs: Any) -> None:
        """Raises an error unless the outputs of a row-wise policy have one row per member."""
        leaves = tree_leaves(outputs)
        check_outputs(leaves)
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.shape[:1] != (self.num_rows,):
                raise ValueError(
                    f"a row_wise policy must return tensors of {self.num_rows} rows, one per member: got "
                    f"shape {list(leaf.shape)}"
                )


def _without_batch(output: Any) -> Any:
    """Returns an output [N, 1, ...] as [N, ...]."""
    if not isinstance(output, Tensor):
        return output
    if output.shape[1:2] != (1,):
        raise ValueError(
            f"the policy was given a batch of one and returned shape {list(output.shape[1:])}: the first "
            "dimension must be the batch"
        )
    return output.squeeze(1)
