"""Every supported operation, under every noise family, against the dense oracle.

The oracle materializes member m (`population.module(m)`) and runs it on its own row; that of the gradient is
the sum over the members' weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import OPERATIONS, POPULATION_SIZE, Draw, Operation, filled
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.population import Population

SIGMA = 0.5
FAMILIES = [Flipout(), Flipout(num_bases=3, base="gaussian"), LowRank(), LowRank(rank=3), Independent()]


def assert_equal(actual: Any, expected: Any, what: str) -> None:
    if expected.is_floating_point():
        torch.testing.assert_close(
            actual, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{what}: {text}"
        )
    else:
        assert torch.equal(actual, expected), what


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@settings(max_examples=3)
@given(data=st.data())
def test_forward_and_gradient_equal_the_dense_oracle(
    operation: Operation, family: Perturbation, data: st.DataObject
) -> None:
    draw = Draw(data)
    policy, inputs = operation.case(draw)
    filled(policy, draw.generator)
    center = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    for antithetic in (True, False):
        noise = family.sample(center, POPULATION_SIZE, draw.generator, antithetic=antithetic)
        population = Population(policy, noise, SIGMA)
        modules = [population.module(member) for member in range(POPULATION_SIZE)]

        results = tree_leaves(population(*inputs, members=draw.members))
        for row, member in enumerate(draw.members.tolist()):
            with torch.no_grad():
                expected = modules[member](*tree_map(lambda x, row=row: x[row], inputs))
            for result, alone in zip(results, tree_leaves(expected), strict=True):
                assert type(result) is Tensor
                assert_equal(result[row], alone, f"member {member}, antithetic={antithetic}")

        utilities = torch.randn(POPULATION_SIZE, generator=draw.generator, dtype=torch.float64)
        gradient = population.gradient(utilities)
        assert gradient.keys() == center.keys()
        for name, value in center.items():
            deviations = torch.stack([module.get_parameter(name) - value for module in modules]).detach()
            assert (deviations != 0).any()  # there is noise
            expected = torch.tensordot(utilities, deviations, 1) / (POPULATION_SIZE * SIGMA**2)
            assert_equal(gradient[name], expected, f"gradient of {name}, antithetic={antithetic}")
