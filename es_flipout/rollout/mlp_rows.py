"""Members of an MLP side by side, in as few torch calls as their arithmetic takes.

For environments that are not compiled, actions other than a Box of floats, and large policies; `fused_rows`
has the others. A small network spends more time between its operations than in them: in modules, in what
recognizes perturbed parameters, in fresh memory. Here the operations of an `MLPPolicy` are lined up once for
a selection of members; their results are, to the last bit, those of `MemberRows`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from es_flipout.perturbations import FlipoutRows, ParameterNoise
from es_flipout.perturbations.padded_linear import padded_sizes
from es_flipout.policies import GRUPolicy, LSTMPolicy, MLPPolicy, StackedPolicy, is_plain_mlp
from es_flipout.population import Population
from es_flipout.rollout.rows import Rows


def member_rows(population: Population) -> Rows:
    """Returns torch's fastest way to run members of a population side by side; none is selected yet."""
    policy = population.policy
    if is_plain_mlp(policy) and population.noise.device.type == "cpu":
        assert isinstance(policy, MLPPolicy)
        return MLPRows(population, policy)
    return population.select(torch.zeros(0, dtype=torch.int64))


def rows_are_independent(policy: nn.Module) -> bool:
    """Returns whether torch is known to round a row of a policy's forward alike in any company, on the CPU.

    It does for networks of trained linear maps, whose products are padded; see `perturbations.padded_linear`.
    """
    if type(policy) is StackedPolicy:
        return rows_are_independent(policy.policy)
    trained = all(parameter.requires_grad for parameter in policy.parameters())
    known = is_plain_mlp(policy) or type(policy) in (GRUPolicy, LSTMPolicy)
    return known and trained


class MLPRows(Rows):
    """Members of an `MLPPolicy`, one a row; see `Rows`. Made for one generation."""

    def __init__(self, population: Population, policy: MLPPolicy) -> None:
        self._population = population
        self._linears = {f"network.{i}": m for i, m in enumerate(policy.network) if isinstance(m, nn.Linear)}
        self._activations = [m for m in policy.network if not isinstance(m, nn.Linear)]
        self._head = policy.head
        dtype = next(policy.parameters()).dtype
        normalizer = policy.normalizer
        self._standardizer = (
            None if normalizer is None else (*normalizer.standardizer(dtype), normalizer.clip)
        )

    @override
    def select(self, members: Tensor) -> None:
        self._noise = self._population.noise.rows(members, self._population.sigma)
        self._layers: list[_Layer] = []
        memory: Tensor | None = None
        for name, linear in self._linears.items():
            weight_noise, bias_noise = self._noise.get(f"{name}.weight"), self._noise.get(f"{name}.bias")
            self._layers.append(_Layer(linear, weight_noise, bias_noise, len(members), memory))
            memory = self._layers[-1].memory

    @override
    def assign(self, rows: Tensor, members: Tensor) -> None:
        self._noise.assign(rows, members)

    @override
    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        (observations,) = inputs
        first = self._layers[0].inputs
        if self._standardizer is None:
            first.copy_(observations)
        else:
            mean, scale, clip = self._standardizer
            torch.sub(observations, mean, out=first).mul_(scale).clamp_(-clip, clip)
        for layer, activation, following in zip(
            self._layers, self._activations, self._layers[1:], strict=False
        ):
            outputs = layer.run()
            if isinstance(activation, nn.Tanh):
                outputs.tanh_()
            else:
                outputs = activation(outputs)
            if outputs.data_ptr() != following.inputs.data_ptr():
                following.inputs.copy_(outputs)
        actions: Tensor = self._head(self._layers[-1].run())
        return actions


class _Layer:
    """A linear map of a selection of members, with memory for what goes in and what comes out.

    All is padded as `padded_linear` does it.

    Attributes:
        inputs: what is to be filled in, [N, I].
        memory: of the padded outputs; the next layer may take it for its inputs.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_noise: ParameterNoise | None,
        bias_noise: ParameterNoise | None,
        num_rows: int,
        memory: Tensor | None,
    ) -> None:
        weight, bias = linear.weight.detach(), linear.bias.detach()
        num_outputs, num_inputs = weight.shape
        rows, ins, outs = padded_sizes(num_rows, num_inputs, num_outputs, weight.dtype)
        padding = (0, ins - num_inputs, 0, outs - num_outputs)

        def room(width: int) -> Tensor:
            return weight.new_zeros(rows, width)

        self._weight, self._bias = F.pad(weight, padding).T, F.pad(bias, padding[2:])
        self._inputs = memory if memory is not None and memory.shape == (rows, ins) else room(ins)
        self.inputs = self._inputs[:num_rows, :num_inputs]
        self.memory = room(outs)
        self._outputs = self.memory[:num_rows, :num_outputs]
        self._weight_noise, self._bias_noise = weight_noise, bias_noise
        self._flipout: tuple[Tensor, ...] | None = None
        if isinstance(weight_noise, FlipoutRows) and weight_noise.groups is None:
            flipped, products = room(ins), room(outs)
            self._flipout = (
                weight_noise.signs_1,
                flipped[:num_rows, :num_inputs],
                flipped,
                F.pad(weight_noise.bases[0], padding).T,
                products,
                products[:num_rows, :num_outputs],
                weight_noise.signs_0,
            )

    def run(self) -> Tensor:
        """Returns what comes of `inputs`, [N, J]."""
        outputs = self._outputs
        torch.addmm(self._bias, self._inputs, self._weight, out=self.memory)
        if self._flipout is not None:
            signs_1, flipped, flipped_padded, base, products_padded, products, signs_0 = self._flipout
            torch.mul(self.inputs, signs_1, out=flipped)
            torch.mm(flipped_padded, base, out=products_padded)
            outputs.addcmul_(products, signs_0)
        elif self._weight_noise is not None:
            outputs = self._weight_noise.add_linear(outputs, self.inputs)
        if self._bias_noise is not None:
            outputs = outputs.add_(self._bias_noise.dense())
        return outputs
