"""A population: the center, its members and the gradient estimate, with an MLP policy."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.normalization import RunningStatistics
from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population

OBSERVATIONS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def policy() -> MLPPolicy:
    """A policy in float64 that has seen observations."""
    generator = torch.Generator().manual_seed(1)
    observations = spaces.Box(-np.inf, np.inf, (5,))
    actions = spaces.Box(np.float32([-1.0, -2.0]), np.float32([1.0, 0.5]))
    policy = MLPPolicy(observations, actions, hidden_sizes=(6, 4), generator=generator).double()
    seen = RunningStatistics(5)
    seen.update(3.0 * torch.randn(50, 5, generator=generator) + 1.0)
    policy.normalizer.merge(seen)
    return policy


def populate(
    policy: nn.Module,
    perturbation: Perturbation = Flipout(),  # noqa: B008 - frozen
    sigma: float = 0.3,
    antithetic: bool = True,
) -> Population:
    generator = torch.Generator().manual_seed(2)
    noise = perturbation.sample(trained_parameters(policy), 12, generator, antithetic=antithetic)
    return Population(policy, noise, sigma)


def one_by_one(population: Population, members: Tensor, observations: Tensor) -> Tensor:
    return torch.cat(
        [
            torch.func.functional_call(population.policy, population.member(int(member)), (row.unsqueeze(0),))
            for member, row in zip(members, observations, strict=True)
        ]
    ).detach()


@pytest.mark.parametrize("perturbation", [Independent(), LowRank(2), Flipout(), Flipout(3)], ids=str)
def test_rows_act_as_their_member_does_alone(policy: MLPPolicy, perturbation: Perturbation) -> None:
    population = populate(policy, perturbation)
    members = torch.tensor([11, 0, 4, 4, 7, 1, 0])
    actions = population.select(members)(OBSERVATIONS)
    torch.testing.assert_close(actions, one_by_one(population, members, OBSERVATIONS), rtol=1e-10, atol=1e-12)


def test_float32_rows_agree_to_rounding(policy: MLPPolicy) -> None:
    population = populate(policy.to(torch.float32))
    members, observations = torch.arange(7), OBSERVATIONS.to(torch.float32)
    actions = population.select(members)(observations)
    assert actions.dtype == torch.float32
    torch.testing.assert_close(actions, one_by_one(population, members, observations), rtol=1e-5, atol=1e-6)


def test_a_selection_serves_many_steps(policy: MLPPolicy) -> None:
    # Signs are held for whole episodes: a row acts the same at every step.
    population = populate(policy)
    rows = population.select(torch.arange(7))
    first, other, again = rows(OBSERVATIONS), rows(-OBSERVATIONS), rows(OBSERVATIONS)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_member_is_center_plus_sigma_times_noise(policy: MLPPolicy) -> None:
    population = populate(policy, sigma=0.25)
    member, noise = population.member(5), population.noise.member(5)
    for name, center in policy.named_parameters():
        torch.testing.assert_close(member[name], center.detach() + 0.25 * noise[name], rtol=0, atol=0)


def test_antithetic_members_average_to_the_center(policy: MLPPolicy) -> None:
    population = populate(policy)
    plus, minus = population.member(6), population.member(7)
    for name, center in policy.named_parameters():
        torch.testing.assert_close((plus[name] + minus[name]) / 2, center.detach(), rtol=0, atol=1e-15)


def test_running_members_leaves_the_policy_and_autograd_alone(policy: MLPPolicy) -> None:
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    actions = populate(policy).select(torch.arange(7))(OBSERVATIONS.clone().requires_grad_())
    assert not actions.requires_grad
    assert type(actions) is Tensor
    assert all(type(value) is nn.Parameter for value in policy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


FAMILIES = [
    *((family, True) for family in (Independent(), LowRank(2), Flipout(), Flipout(3, "gaussian"))),
    *((family, False) for family in (Independent(), LowRank(), Flipout(), Flipout(4))),
]
every_family = pytest.mark.parametrize(("perturbation", "antithetic"), FAMILIES, ids=str)


@every_family
def test_reassigned_rows_equal_a_fresh_selection(
    policy: MLPPolicy, perturbation: Perturbation, antithetic: bool
) -> None:
    population = populate(policy, perturbation, antithetic=antithetic)
    noise = {name: value.clone() for name, value in population.member(9).items()}
    members = torch.tensor([11, 0, 4, 4, 7, 1, 0])
    rows, untouched = population.select(members), population.select(members)
    expected = untouched(OBSERVATIONS)
    for places, newcomers in (([5, 0, 3], [2, 9, 8]), ([6], [9]), ([], []), ([0, 1, 2, 3, 4, 5, 6], [3] * 7)):
        rows.assign(torch.tensor(places, dtype=torch.int64), torch.tensor(newcomers, dtype=torch.int64))
        members = members.clone()
        members[torch.tensor(places, dtype=torch.int64)] = torch.tensor(newcomers, dtype=torch.int64)
        actions = rows(OBSERVATIONS)
        assert torch.equal(actions, population.select(members)(OBSERVATIONS))
        torch.testing.assert_close(
            actions, one_by_one(population, members, OBSERVATIONS), rtol=1e-10, atol=1e-12
        )
    assert torch.equal(untouched(OBSERVATIONS), expected)
    assert all(torch.equal(value, noise[name]) for name, value in population.member(9).items())


def test_a_forward_that_raises_leaves_the_policy_as_it_was(policy: MLPPolicy) -> None:
    rows = populate(policy).select(torch.arange(7))
    expected, plain = rows(OBSERVATIONS), policy(OBSERVATIONS).detach()
    parameters = dict(policy.named_parameters())
    with pytest.raises(
        ValueError, match=r"inputs must be tensors of 7 rows, one per member: got shape \[3, 5\]"
    ):
        rows(OBSERVATIONS[:3])
    assert all(value is parameters[name] for name, value in policy.named_parameters())
    assert torch.equal(policy(OBSERVATIONS).detach(), plain)
    assert torch.equal(rows(OBSERVATIONS), expected)


MEETING = threading.Barrier(2)


class Meets(nn.Module):
    """A policy in which two simultaneous forwards wait for each other halfway through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, observations: Tensor) -> Tensor:
        hidden = self.first(observations)
        MEETING.wait(timeout=20)
        return self.second(hidden)


def test_two_selections_may_run_at_the_same_time() -> None:
    population = populate(Meets().double())
    members = [torch.arange(7), torch.arange(11, 4, -1)]
    selections = [population.select(each) for each in members]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda rows: rows(OBSERVATIONS), selections))
    for each, actions in zip(members, together, strict=True):
        for row, member in enumerate(each.tolist()):
            weights = population.member(member)
            hidden = OBSERVATIONS[row] @ weights["first.weight"].T + weights["first.bias"]
            alone = hidden @ weights["second.weight"].T + weights["second.bias"]
            torch.testing.assert_close(actions[row], alone, rtol=1e-10, atol=1e-12)


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, observations: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(observations)))


@every_family
def test_a_parameter_used_twice_has_one_noise(perturbation: Perturbation, antithetic: bool) -> None:
    population = populate(Tied().double(), perturbation, antithetic=antithetic)
    member = population.member(0)
    assert member["first.weight"] is member["second.weight"]
    members = torch.arange(7)
    rows = population.select(members)
    expected = one_by_one(population, members, OBSERVATIONS)
    torch.testing.assert_close(rows(OBSERVATIONS), expected, rtol=1e-10, atol=1e-12)
    rows.assign(torch.tensor([2]), torch.tensor([11]))
    members[2] = 11
    expected = one_by_one(population, members, OBSERVATIONS)
    torch.testing.assert_close(rows(OBSERVATIONS), expected, rtol=1e-10, atol=1e-12)


def test_size_counts_both_halves_of_antithetic_pairs(policy: MLPPolicy) -> None:
    assert populate(policy).size == 12
    assert populate(policy, antithetic=False).size == 12


@pytest.mark.parametrize("index", [-1, 12])
def test_a_member_that_does_not_exist_is_refused(policy: MLPPolicy, index: int) -> None:
    with pytest.raises(IndexError, match=f"member {index} of a population of 12"):
        populate(policy).member(index)


@pytest.mark.parametrize("shape", [(11,), (13,), (12, 1), (1,), ()], ids=str)
def test_utilities_of_another_shape_are_refused(policy: MLPPolicy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"utilities must be \[12\]"):
        populate(policy).gradient(torch.ones(shape))


def test_gradient_by_hand() -> None:
    # One weight and one antithetic pair: eps_0 = +e, eps_1 = -e, so g = (u_0 - u_1) e / (2 sigma).
    policy = nn.Linear(1, 1, bias=False)
    noise = Flipout().sample(dict(policy.named_parameters()), 2, torch.Generator().manual_seed(0))
    eps = noise.member(0)["weight"]
    gradient = Population(policy, noise, 0.1).gradient(torch.tensor([3.0, -1.0]))["weight"]
    torch.testing.assert_close(gradient, 4.0 * eps / 0.2)


def test_gradient_of_a_smooth_fitness_points_uphill(policy: MLPPolicy) -> None:
    # d = 5 x 6 + 6 x 4 + 4 x 2 + 12 = 74 parameters and 2,048 pairs: cosine² is about 1 / (1 + 74 / 2048).
    parameters = dict(policy.named_parameters())
    target = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def fitness(actions: Tensor) -> Tensor:
        return -(actions - target).square().sum(-1)

    autograd = torch.autograd.grad(fitness(policy(OBSERVATIONS[:1])).sum(), list(parameters.values()))
    noise = Flipout().sample(parameters, 4096, torch.Generator().manual_seed(3))
    population = Population(policy, noise, 1e-3)
    observed = fitness(population.select(torch.arange(4096))(OBSERVATIONS[:1].expand(4096, -1)))
    gradient = population.gradient(observed)
    estimated = torch.cat([gradient[name].flatten() for name in parameters])
    exact = torch.cat([value.flatten() for value in autograd])
    assert torch.cosine_similarity(estimated, exact, dim=0) > 0.95
    assert float(estimated.norm() / exact.norm()) == pytest.approx(1.0, abs=0.1)
