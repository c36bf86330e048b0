"""One contract for every noise family: three views of the same noise, checked against dense weights."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from es_flipout.perturbations import (
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    PopulationNoise,
)
from es_flipout.population import Population
from es_flipout.run.build import make_perturbation
from es_flipout.run.config import ESConfig
from es_flipout.strategy import FlipoutES


@dataclass(frozen=True)
class Family:
    perturbation: Perturbation
    antithetic: bool

    @property
    def label(self) -> str:
        return f"{self.perturbation}-{'antithetic' if self.antithetic else 'single'}"

    @property
    def unit(self) -> int:
        """The smallest population that the family supports."""
        return getattr(self.perturbation, "num_bases", 1) * (2 if self.antithetic else 1)


FAMILIES = [
    Family(perturbation, antithetic)
    for perturbation in (
        *(Independent(), LowRank(1), LowRank(3), Flipout(), Flipout(2)),
        *(Flipout(1, "gaussian"), Flipout(3, "gaussian")),
    )
    for antithetic in (True, False)
]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.label)
antithetic_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.antithetic], ids=lambda family: family.label
)


class Probe(nn.Module):
    """A module with a matrix, a bias, a matrix without bias, a vector gain and a scalar among its weights."""

    def __init__(self, inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs, bias=False)
        self.gain = nn.Parameter(torch.empty(hidden))
        self.log_scale = nn.Parameter(torch.empty(()))
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, observations: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(observations)) * self.gain) * self.log_scale.exp()


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(family: Family, parameters: dict[str, Tensor], population_size: int, seed: int) -> PopulationNoise:
    return family.perturbation.sample(
        parameters, population_size, generator_of(seed), antithetic=family.antithetic
    )


def shapes(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.empty(size, dtype=torch.float64) for name, size in sizes.items()}


@dataclass(frozen=True)
class Case:
    """A random policy, a population of `multiple` units, and rows that name members by fractions of P."""

    layers: tuple[int, int, int]
    multiple: int
    picks: list[float]
    sigma: float
    seed: int

    def population(self, family: Family) -> Population:
        policy = Probe(*self.layers, generator_of(self.seed))
        noise = draw(family, dict(policy.named_parameters()), self.multiple * family.unit, self.seed + 1)
        return Population(policy, noise, self.sigma)

    def members(self, population: Population) -> Tensor:
        return torch.tensor([int(pick * population.size) for pick in self.picks])


cases = st.builds(
    Case,
    layers=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)),
    multiple=st.integers(1, 3),
    picks=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=9),
    sigma=st.sampled_from([0.02, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
)


@every_family
@settings(deadline=None, max_examples=8)
@given(case=cases)
def test_rows_run_as_their_member_does_alone(family: Family, case: Case) -> None:
    population = case.population(family)
    members = case.members(population)
    observations = torch.randn(len(members), case.layers[0], generator=generator_of(2), dtype=torch.float64)
    alone = [
        torch.func.functional_call(population.policy, population.member(int(member)), (row.unsqueeze(0),))
        for member, row in zip(members, observations, strict=True)
    ]
    torch.testing.assert_close(
        population.select(members)(observations), torch.cat(alone).detach(), rtol=1e-9, atol=1e-11
    )


@every_family
@settings(deadline=None, max_examples=8)
@given(case=cases)
def test_rows_written_out_are_the_scaled_noise_of_their_members(family: Family, case: Case) -> None:
    population = case.population(family)
    members = case.members(population)
    rows = population.noise.rows(members, 0.25)
    for name in dict(population.policy.named_parameters()):
        expected = torch.stack([0.25 * population.noise.member(int(member))[name] for member in members])
        torch.testing.assert_close(rows[name].dense(), expected, rtol=0, atol=1e-15)


@every_family
@settings(deadline=None, max_examples=8)
@given(case=cases)
def test_gradient_is_the_sum_over_members(family: Family, case: Case) -> None:
    population = case.population(family)
    utilities = torch.randn(population.size, generator=generator_of(3), dtype=torch.float64)
    noise = [population.noise.member(index) for index in range(population.size)]
    gradient = population.gradient(utilities)
    total = population.noise.weighted_sum(utilities)
    parameters = dict(population.policy.named_parameters())
    assert gradient.keys() == total.keys() == parameters.keys()
    for name, parameter in parameters.items():
        explicit = sum(
            utility * member[name] for utility, member in zip(utilities.tolist(), noise, strict=True)
        )
        assert total[name].shape == parameter.shape
        torch.testing.assert_close(total[name], explicit, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            gradient[name], explicit / (population.size * case.sigma), rtol=1e-10, atol=1e-12
        )


@antithetic_families
def test_antithetic_pairs_are_neighbors_and_exact_negatives(family: Family) -> None:
    noise = draw(family, shapes(weight=(3, 2), bias=(3,), scalar=()), 2 * family.unit, 5)
    for even in range(0, noise.population_size, 2):
        plus, minus = noise.member(even), noise.member(even + 1)
        for name in plus:
            torch.testing.assert_close(minus[name], -plus[name], rtol=0, atol=0)
            assert plus[name].abs().sum() > 0


@antithetic_families
def test_utilities_equal_within_pairs_sum_to_exactly_zero(family: Family) -> None:
    noise = draw(family, shapes(weight=(3, 2), bias=(3,)), 2 * family.unit, 5)
    utilities = torch.arange(noise.population_size, dtype=torch.float64).div(2, rounding_mode="floor")
    assert all(bool((total == 0).all()) for total in noise.weighted_sum(utilities + 0.1).values())


@every_family
def test_noise_is_white(family: Family) -> None:
    # Weights of one member, and of two members that are not a pair, must be uncorrelated with unit
    # variance. Over G generations an entry of the covariance has a standard error of at most
    # sqrt(3 / G) = 0.045 (the worst case: one Gaussian base weight seen by two members, E[base^4] = 3), or
    # sqrt(8 / G) = 0.073 with products of two normals (rank 1: E[eps^4] = 9), so a bound
    # of 6 fails a correct family with probability below 1e-6, and detects a variance of 0.5 or a shared sign.
    variance = 8 if family.perturbation == LowRank(1) else 4 if family.perturbation == LowRank(3) else 3
    generations, bound = 1500, 6 * (variance / 1500) ** 0.5
    generator = generator_of(11)
    parameters = shapes(weight=(2, 3), bias=(2,))
    samples = []
    for generation in range(generations):
        noise = family.perturbation.sample(
            parameters, 2 * family.unit, generator, antithetic=family.antithetic
        )
        # All orientations and bases take turns; the second member is never the mirror image of the first.
        first = generation % noise.population_size
        second = (first + (2 if family.antithetic else 1)) % noise.population_size
        samples.append(
            torch.cat([value.flatten() for m in (first, second) for value in noise.member(m).values()])
        )
    stacked = torch.stack(samples)
    assert stacked.mean(dim=0).abs().max() < bound
    covariance = stacked.T @ stacked / generations
    assert (covariance - torch.eye(covariance.shape[0], dtype=torch.float64)).abs().max() < bound


@every_family
def test_the_generator_decides_the_noise(family: Family) -> None:
    parameters = shapes(weight=(4, 5), bias=(4,))
    one, same, other = (draw(family, parameters, 2 * family.unit, seed).member(0) for seed in (7, 7, 8))
    for name in parameters:
        torch.testing.assert_close(one[name], same[name], rtol=0, atol=0)
        assert not torch.equal(one[name], other[name])


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_dtype_of_its_parameter(family: Family, dtype: torch.dtype) -> None:
    parameters = {name: value.to(dtype) for name, value in shapes(weight=(4, 5), bias=(4,)).items()}
    noise = draw(family, parameters, family.unit, 0)
    utilities = torch.ones(family.unit, dtype=torch.float64)  # shaped fitness is float64 for any policy
    rows = noise.rows(torch.tensor([0]), 0.1)
    for name in parameters:
        views = (noise.member(0)[name], noise.weighted_sum(utilities)[name], rows[name].dense())
        assert {view.dtype for view in views} == {dtype}


@antithetic_families
def test_an_odd_antithetic_population_is_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="must be even, got 7 members"):
        draw(family, shapes(weight=(2, 2)), 7, 0)


@pytest.mark.parametrize(
    ("family", "population_size", "divisor"),
    [
        (Family(Flipout(3, "gaussian"), False), 8, 3),
        (Family(Flipout(2), False), 5, 2),
        (Family(Flipout(3, "gaussian"), True), 8, 6),  # even: but four pairs do not split over three bases
        (Family(Flipout(2), True), 6, 4),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_a_population_that_the_bases_do_not_divide_is_refused(
    family: Family, population_size: int, divisor: int
) -> None:
    with pytest.raises(ValueError, match=f"must be divisible by {divisor}$"):
        draw(family, shapes(weight=(2, 2)), population_size, 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ESConfig(), Flipout(num_bases=1, base="rademacher")),
        (ESConfig(base="gaussian", num_bases=4), Flipout(num_bases=4, base="gaussian")),
        (ESConfig(perturbation="low_rank", rank=3), LowRank(3)),
        (ESConfig(perturbation="independent"), Independent()),
    ],
    ids=["default", "flipout", "low-rank", "independent"],
)
def test_the_configured_family_is_built(config: ESConfig, expected: Perturbation) -> None:
    assert make_perturbation(config) == expected


@every_family
def test_the_origin_determines_the_noise(family: Family) -> None:
    policy = Probe(4, 3, 2, generator_of(0))
    es = FlipoutES(
        policy,
        population_size=4 * family.unit,
        sigma=0.1,
        perturbation=family.perturbation,
        antithetic=family.antithetic,
        seed=5,
    )
    es.tell(torch.zeros(es.ask().size))
    populations = [es.ask(), es.ask_more()]
    utilities = torch.randn(es.population_size, generator=generator_of(1), dtype=torch.float64)
    for population in populations:
        # It must not depend on the values of the parameters: another policy of the same shapes.
        origin, other = population.origin, Probe(4, 3, 2, generator_of(9))
        assert origin is not None
        assert (origin.seed, origin.generation) == (5, 1)
        for noise in (origin.draw(policy), origin.draw(other)):
            for index in (0, 1, population.size - 1):
                for name, value in population.noise.member(index).items():
                    torch.testing.assert_close(noise.member(index)[name], value, rtol=0, atol=0)
            for name, total in population.noise.weighted_sum(utilities).items():
                torch.testing.assert_close(noise.weighted_sum(utilities)[name], total, rtol=0, atol=0)
    first, second = (population.noise.member(0)["first.weight"] for population in populations)
    assert not torch.equal(first, second)
