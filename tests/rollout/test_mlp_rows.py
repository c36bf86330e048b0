"""Members of an MLP in few calls: to the last bit what the general way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout import Flipout, FlipoutES, Independent, LinearPolicy, LowRank, MLPPolicy
from es_flipout.rollout.mlp_rows import MLPRows, member_rows

P = 24
FAMILIES = [Flipout(), Flipout(num_bases=2), LowRank(2), Independent()]


def box(size: int, bound: float = np.inf) -> spaces.Box:
    return spaces.Box(-bound, bound, (size,), np.float32)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("sizes", "activation"),
    [((64, 64), "tanh"), ((5, 7), "relu"), ((16,), "elu"), ((9,), "silu"), ((), "tanh")],
)
def test_rows_equal_the_general_way_bit_for_bit(sizes, activation, dtype, family):
    policy = MLPPolicy(box(17), box(6, 1.0), hidden_sizes=sizes, activation=activation).to(dtype)
    policy.normalizer.mean += 0.3
    policy.normalizer.count += 100
    policy.normalizer.m2 += 50
    population = FlipoutES(policy, population_size=P, sigma=0.2, perturbation=family).ask()
    rows = member_rows(population)
    assert isinstance(rows, MLPRows)
    for count in (1, 3, 4, 33):
        members, x = torch.randint(P, (count,)), torch.randn(count, 17, dtype=dtype)
        general = population.select(members)
        rows.select(members)
        assert torch.equal(rows(x), general(x))
        changed, others = torch.tensor([0, count - 1]).unique(), torch.randint(P, (min(count, 2),))
        rows.assign(changed, others)
        general.assign(changed, others)
        assert torch.equal(rows(x), general(x))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3])], ids=str)
def test_discrete_actions_and_no_normalizer(space):
    policy = LinearPolicy(box(3), space, normalize_observations=False)
    population = FlipoutES(policy, population_size=P, sigma=0.5).ask()
    rows, members, x = member_rows(population), torch.arange(P), torch.randn(P, 3)
    rows.select(members)
    assert isinstance(rows, MLPRows)
    assert torch.equal(rows(x), population.select(members)(x))


def test_frozen_parameters_stay_those_of_the_center():
    policy = MLPPolicy(box(3), box(2, 1.0), hidden_sizes=(8,))
    policy.network[0].weight.requires_grad_(False)
    policy.network[2].bias.requires_grad_(False)
    population = FlipoutES(policy, population_size=P, sigma=0.5).ask()
    rows, x = member_rows(population), torch.randn(P, 3)
    rows.select(torch.arange(P))
    assert isinstance(rows, MLPRows)
    # Frozen layers round in another way there.
    torch.testing.assert_close(rows(x), population.select(torch.arange(P))(x))


def test_tied_layers_take_the_general_way():
    policy = MLPPolicy(box(3), box(2, 1.0), hidden_sizes=(8, 8, 8))
    policy.network[4].weight = policy.network[2].weight
    rows = member_rows(FlipoutES(policy, population_size=P, sigma=0.1).ask())
    assert not isinstance(rows, MLPRows)


def test_a_policy_with_a_forward_of_its_own_takes_the_general_way():
    class Twice(MLPPolicy):
        def forward(self, observations):
            return 2 * super().forward(observations)

    policy = Twice(box(3), box(2, 1.0))
    rows = member_rows(FlipoutES(policy, population_size=P, sigma=0.1).ask())
    assert not isinstance(rows, MLPRows)
