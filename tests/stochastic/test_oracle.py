"""Flipout under back-propagation against the weights of each example, written out, for every operation.

The oracle runs the module example by example with `noisy.weights(N, seed)`, and autograd differentiates
through those weights. The operations are those that populations are tested with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import OPERATIONS, Draw, Operation, filled
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from es_flipout.stochastic import (
    AdditiveGaussian,
    DropConnect,
    LearnedGaussian,
    MultiplicativeGaussian,
    PerturbedModule,
    WeightDistribution,
    perturbed,
)

OPTIONS: list[dict[str, Any]] = [{"num_bases": 1}, {"num_bases": 2}, {"estimator": "independent"}]
DISTRIBUTIONS = [MultiplicativeGaussian(0.5), AdditiveGaussian(0.3), DropConnect(), LearnedGaussian(0.3)]


class OneByOne(nn.Module):
    """Runs a module that knows no batches on a batch of one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        outputs = self.module(*tree_map(lambda x: x.squeeze(0), inputs))
        return tree_map(lambda y: y.unsqueeze(0), outputs)


def one_by_one(noisy: PerturbedModule, inputs: Any, seed: int) -> list[list[Tensor]]:
    """Returns the outputs of each example, computed with its own weights."""
    num_examples = len(tree_leaves(inputs)[0])
    weights = noisy.weights(num_examples, seed)
    outputs = []
    for n in range(num_examples):
        own = {name: value[n] for name, value in weights.items()}
        outputs.append(
            tree_leaves(functional_call(noisy.module, own, tree_map(lambda x, n=n: x[n : n + 1], inputs)))
        )
    return outputs


def gradients(outputs: list[Tensor], noisy: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    """Returns the gradients of a random combination of the outputs, by all parameters and inputs."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        if output.is_floating_point():
            total = (
                total + (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
            )
    wanted = [value for value in noisy.parameters() if value.requires_grad]
    wanted += [leaf for leaf in tree_leaves(inputs) if leaf.requires_grad]
    if not total.requires_grad:
        return []
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [
        torch.zeros_like(value) if each is None else each for value, each in zip(wanted, found, strict=True)
    ]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Compares to 1e-12 of the largest value, or of 1."""
    if not expected.is_floating_point():
        assert torch.equal(found, expected)
        return
    assert found.shape == expected.shape
    finite = expected.detach()[expected.isfinite()].abs()
    largest = max(1.0, float(finite.max())) if finite.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * largest, equal_nan=True)


def check(
    module: nn.Module, inputs: Any, distribution: WeightDistribution, seed: int, **options: Any
) -> None:
    """Compares outputs and gradients with those of weights written out."""
    inputs = tree_map(lambda x: x.clone().requires_grad_(x.is_floating_point()), inputs)
    noisy = perturbed(module, distribution, **options).double()
    with noisy.frozen(seed):
        outputs = tree_leaves(noisy(*inputs))
    expected = [torch.cat(rows) for rows in zip(*one_by_one(noisy, inputs, seed), strict=True)]
    assert len(outputs) == len(expected)
    for found, wanted in zip(outputs, expected, strict=True):
        assert_close(found, wanted)
    found = gradients(outputs, noisy, inputs, seed)
    wanted = gradients(expected, noisy, inputs, seed)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@settings(max_examples=2)
@given(data=st.data())
def test_outputs_and_gradients_are_those_of_each_examples_weights(
    operation: Operation, distribution: WeightDistribution, data: st.DataObject
) -> None:
    draw = Draw(data)
    module, inputs = operation.case(draw)
    seed, options = data.draw(st.integers(0, 10_000)), data.draw(st.sampled_from(OPTIONS))
    check(OneByOne(filled(module, draw.generator)), inputs, distribution, seed, **options)
