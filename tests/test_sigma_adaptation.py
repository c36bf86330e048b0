"""Adaptive sigma against numbers worked out by hand, the papers' rules member by member, and every player."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from es_flipout.fitness import centered_ranks, nes
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.population import Population
from es_flipout.sigma_adaptation import LARGEST, SMALLEST, SigmaAdaptation
from es_flipout.strategy import FlipoutES

SIGMA = 0.5
"""So large that the fitness is far from linear: the ranks of a pair would cancel."""
FAMILIES = [
    pytest.param(Independent(), id="independent"),
    pytest.param(Flipout(2, "gaussian"), id="two bases"),
    pytest.param(Flipout(4, "gaussian"), id="four bases"),
]


def linear_policy() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def strategy(
    policy: nn.Module, perturbation: Perturbation, rule: SigmaAdaptation | None, **options: object
) -> FlipoutES:
    settings = {"population_size": 16, "sigma": SIGMA, **options}
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    return FlipoutES(
        policy, optimizer=optimizer, perturbation=perturbation, sigma_adaptation=rule, **settings
    )  # type: ignore[arg-type]


def noise_of(population: Population) -> dict[str, Tensor]:
    """The members' weights minus the center's, [P, *shape], by name: sigma c z."""
    members = [population.member(index) for index in range(population.size)]
    center = dict(population.policy.named_parameters())
    return {
        name: torch.stack([member[name] - center[name] for member in members]).detach() for name in center
    }


def fitness_of(population: Population) -> Tensor:
    """Prefers weights near (1, 2, ...), some much more than others."""
    members = [
        torch.cat([each.flatten() for each in population.member(i).values()]) for i in range(len(population))
    ]
    weights = torch.stack(members).detach()
    target = torch.arange(1, weights.shape[1] + 1, dtype=weights.dtype)
    return -((weights - target).square() * target).sum(dim=1)


def test_pgpe_by_hand() -> None:
    # Scales 1 and 2, S = 0.5 and -0.25, lr = 0.2: 1 * (1 + 0.1) = 1.1 and 2 * (1 - 0.05) = 1.9.
    scales, magnitudes = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.5, -0.25])}
    updated = SigmaAdaptation("pgpe", lr=0.2).updated(scales, magnitudes, num_members=10)
    torch.testing.assert_close(updated["w"], torch.tensor([1.1, 1.9]))


def test_snes_by_hand() -> None:
    # lr / 2 * P * S = 0.1 / 2 * 10 * 0.2 = 0.1 and -0.1: factors exp(0.1) = 1.10517 and exp(-0.1) = 0.904837.
    scales, magnitudes = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.2, -0.2])}
    updated = SigmaAdaptation("snes", lr=0.1).updated(scales, magnitudes, num_members=10)
    torch.testing.assert_close(updated["w"], torch.tensor([1.10517, 1.809675]))


def test_default_rates() -> None:
    # Four weights: (3 + ln 4) / (5 * 2) = 0.438629; times P / 2 * S = 0.1, exp(0.0438629) = 1.044839.
    scales = {"a": torch.ones(3), "b": torch.ones(1)}
    magnitudes = {name: torch.full_like(scale, 0.1) for name, scale in scales.items()}
    snes = SigmaAdaptation("snes").updated(scales, magnitudes, num_members=2)
    torch.testing.assert_close(snes["b"], torch.tensor([1.044839]))
    pgpe = SigmaAdaptation("pgpe").updated(scales, magnitudes, num_members=2)
    torch.testing.assert_close(pgpe["a"], torch.full((3,), 1.01))


def test_changes_are_bounded() -> None:
    scales, magnitudes = {"w": torch.ones(2)}, {"w": torch.tensor([1e6, -1e6])}
    for rule in ("pgpe", "snes"):
        adaptation = SigmaAdaptation(rule, max_change=0.3)  # type: ignore[arg-type]
        updated = adaptation.updated(scales, magnitudes, num_members=8)
        torch.testing.assert_close(updated["w"], torch.tensor([1.3, 0.7]))
    for _ in range(200):  # 1.3^200 = 6e22, 0.7^200 = 1e-31
        scales = adaptation.updated(scales, magnitudes, num_members=8)
    torch.testing.assert_close(scales["w"], torch.tensor([LARGEST, SMALLEST]))


@pytest.mark.parametrize("perturbation", FAMILIES)
def test_pgpe_is_the_papers_rule(perturbation: Perturbation) -> None:
    """Three generations of symmetric sampling, pair by pair as in the paper, with b = 0."""
    policy, lr = linear_policy(), 3.0
    es = strategy(policy, perturbation, SigmaAdaptation("pgpe", lr, max_change=0.99))
    sigma = {name: torch.full_like(value, SIGMA).detach() for name, value in policy.named_parameters()}
    for _ in range(3):
        population = es.ask()
        epsilon = {name: noise[0::2] for name, noise in noise_of(population).items()}
        fitness = fitness_of(population)
        rewards = centered_ranks(fitness)
        es.tell(fitness)
        for name, drawn in epsilon.items():
            change = torch.zeros_like(sigma[name])
            for epsilon_q, positive, negative in zip(drawn, rewards[0::2], rewards[1::2], strict=True):
                s = (epsilon_q.square() - sigma[name].square()) / sigma[name]
                change += lr * (positive + negative) / 2 * s / len(drawn)
            sigma[name] += change
            torch.testing.assert_close(SIGMA * es.sigma_scales[name], sigma[name], rtol=1e-10, atol=0)
    assert max(float((value / SIGMA - 1).abs().max()) for value in sigma.values()) > 0.01


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("perturbation", FAMILIES)
def test_snes_is_the_papers_rule(perturbation: Perturbation, antithetic: bool) -> None:
    """Center and scales of three generations, member by member as in the paper."""
    policy, sgd_lr = linear_policy(), 0.05
    options = {"fitness_shaping": "nes", "antithetic": antithetic}
    es = strategy(policy, perturbation, SigmaAdaptation("snes", max_change=0.99), **options)
    sigma = {name: torch.full_like(value, SIGMA).detach() for name, value in policy.named_parameters()}
    center = {name: value.detach().clone() for name, value in policy.named_parameters()}
    eta_sigma = (3 + math.log(8)) / (5 * math.sqrt(8))  # 6 weights and 2 biases
    eta_mu = sgd_lr / (SIGMA**2 * es.population_size)  # because SGD steps along 1 / (P sigma) Σ u eps
    for _ in range(3):
        population = es.ask()
        s = {name: noise / sigma[name] for name, noise in noise_of(population).items()}
        fitness = fitness_of(population)
        utilities = nes(fitness)
        es.tell(fitness)
        for name, drawn in s.items():
            center[name] += eta_mu * sigma[name] * torch.tensordot(utilities, drawn, dims=1)
            sigma[name] *= torch.exp(eta_sigma / 2 * torch.tensordot(utilities, drawn.square() - 1, dims=1))
            torch.testing.assert_close(SIGMA * es.sigma_scales[name], sigma[name], rtol=1e-10, atol=0)
            torch.testing.assert_close(
                policy.get_parameter(name).detach(), center[name], rtol=1e-10, atol=1e-14
            )


@pytest.mark.parametrize("perturbation", FAMILIES)
def test_forward_and_gradient_have_the_scales(perturbation: Perturbation) -> None:
    """A population whose weights have different sigmas, against its members one by one."""
    policy = linear_policy()
    es = strategy(policy, perturbation, SigmaAdaptation("pgpe", lr=2.0))
    for _ in range(2):
        es.tell(fitness_of(es.ask()))
    population = es.ask()
    inputs = torch.randn(16, 3, dtype=torch.float64)
    outputs = torch.stack([population.module(index)(inputs[index]) for index in range(16)])
    torch.testing.assert_close(population(inputs), outputs)
    utilities = torch.linspace(-1, 1, 16, dtype=torch.float64)
    gradient = population.gradient(utilities)
    for name, noise in noise_of(population).items():
        expected = torch.tensordot(utilities, noise, dims=1) / (16 * SIGMA**2)
        torch.testing.assert_close(gradient[name], expected)


def test_sigma_grows_where_the_fitness_wants_it() -> None:
    """The fitness rewards distance in the first weight and punishes it in the second."""
    policy = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        policy.weight.copy_(torch.tensor([[0.0, 1.0]]))
    es = strategy(policy, Independent(), SigmaAdaptation("pgpe", lr=0.5), population_size=64, sigma=0.2)

    def fitness(population: Population) -> Tensor:
        weights = torch.stack([population.member(i)["weight"][0] for i in range(64)]).detach()
        return weights[:, 0].square() - 10 * (weights[:, 1] - 1).square()

    for _ in range(30):
        es.tell(fitness(es.ask()))
    first, second = es.sigma_scales["weight"][0].tolist()
    assert first > 1 > 2 * second


def test_equal_fitness_changes_nothing() -> None:
    es = strategy(linear_policy(), Independent(), SigmaAdaptation("pgpe"))
    es.ask()
    es.tell(np.full(16, 3.0))
    assert all(bool((scale == 1).all()) for scale in es.sigma_scales.values())


def test_several_populations_are_one() -> None:
    """S over the members of both populations, each member's noise written out."""
    es = strategy(linear_policy(), Independent(), SigmaAdaptation("pgpe", lr=0.4))
    populations = es.ask(), es.ask_more()
    noise = {name: torch.cat([noise_of(each)[name] for each in populations]) for name in ("weight", "bias")}
    fitness = torch.cat([fitness_of(each) for each in populations])
    es.tell(fitness)
    utilities = centered_ranks(fitness)
    for name, drawn in noise.items():
        magnitudes = torch.tensordot(utilities, (drawn / SIGMA).square() - 1, dims=1) / 32
        torch.testing.assert_close(es.sigma_scales[name], 1 + 0.4 * magnitudes)


def test_snes_adds_up_over_the_elites() -> None:
    es = strategy(
        linear_policy(), Independent(), SigmaAdaptation("snes"), fitness_shaping="nes", elite_fraction=0.25
    )
    population = es.ask()
    noise, fitness = noise_of(population)["weight"], torch.arange(16.0)  # the best pairs: members 12 to 15
    es.tell(fitness)
    squares = torch.tensordot(nes(fitness[12:]), (noise[12:] / SIGMA).square() - 1, dims=1)
    expected = torch.exp((3 + math.log(8)) / (5 * math.sqrt(8)) / 2 * squares).clamp(0.8, 1.2)
    torch.testing.assert_close(es.sigma_scales["weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_of_half_precision_policies_are_not(dtype: torch.dtype) -> None:
    """Changes of half a percent must add up: bfloat16 has steps of 0.8% above 1."""
    es = strategy(linear_policy().to(dtype), Independent(), SigmaAdaptation("pgpe", lr=0.02))
    for _ in range(4):
        es.tell(fitness_of(es.ask()))
    scales = es.sigma_scales["weight"]
    assert scales.dtype == torch.float32
    assert len(scales.unique()) == 6
    assert float((scales - 1).abs().max()) < 0.02


def test_without_sigma_nothing_adapts() -> None:
    es = strategy(linear_policy(), Independent(), SigmaAdaptation("pgpe"))
    es.sigma = 0.0
    es.ask()
    es.tell(torch.arange(16.0) ** 2)
    assert all(bool((scale == 1).all()) for scale in es.sigma_scales.values())


def test_adaptation_begins_with_the_next_population() -> None:
    es = strategy(linear_policy(), LowRank(), None, fitness_shaping="nes")
    es.ask()
    es.perturbation, es.sigma_adaptation = Independent(), SigmaAdaptation("snes")
    es.tell(torch.arange(16.0))
    assert not es.sigma_scales
    es.tell(fitness_of(es.ask()))
    assert bool((es.sigma_scales["weight"] != 1).all())


@pytest.mark.parametrize("perturbation", FAMILIES)
def test_scales_multiply(perturbation: Perturbation) -> None:
    parameters = dict(linear_policy().named_parameters())
    once, twice = (perturbation.sample(parameters, 8, torch.Generator().manual_seed(0)) for _ in range(2))
    scales = {name: torch.full_like(value, 3.0) for name, value in parameters.items()}
    twice.rescale(scales)
    twice.rescale(scales)
    for name, noise in once.member(5).items():
        torch.testing.assert_close(twice.member(5)[name], 9 * noise)


def test_state_continues_exactly_and_old_states_load() -> None:
    es, twin = (strategy(linear_policy(), Independent(), SigmaAdaptation("pgpe", lr=0.4)) for _ in range(2))
    es.tell(fitness_of(es.ask()))
    twin.load_state_dict(es.state_dict())
    for each in (es, twin):
        each.tell(fitness_of(each.ask()))
    for name, scale in es.sigma_scales.items():
        assert torch.equal(scale, twin.sigma_scales[name])
    old = {name: value for name, value in es.state_dict().items() if name != "sigma_scales"}
    twin.load_state_dict(old)
    assert all(bool((scale == 1).all()) for scale in twin.ask().origin.scales.values())  # type: ignore[union-attr]


def test_mean_sigma() -> None:
    # Scales 1, 1, 1, 5 have the mean square (3 + 25) / 4 = 7.
    es = strategy(nn.Linear(4, 1, bias=False), Independent(), SigmaAdaptation("pgpe"))
    assert es.mean_sigma == SIGMA
    es.load_state_dict(es.state_dict() | {"sigma_scales": {"weight": torch.tensor([[1.0, 1.0, 1.0, 5.0]])}})
    assert es.mean_sigma == pytest.approx(SIGMA * math.sqrt(7))


def test_parameters_that_come_later_begin_at_sigma() -> None:
    policy = linear_policy()
    policy.bias.requires_grad_(False)
    es = strategy(policy, Independent(), SigmaAdaptation("pgpe", lr=0.5))
    es.tell(fitness_of(es.ask()))
    weight = es.sigma_scales["weight"].clone()
    policy.bias.requires_grad_(True)
    es.ask()
    assert torch.equal(es.sigma_scales["weight"], weight)
    assert bool((es.sigma_scales["bias"] == 1).all())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SigmaAdaptation("cma"), "rule must be 'pgpe' or 'snes', got 'cma'"),  # type: ignore[arg-type]
        (lambda: SigmaAdaptation("pgpe", lr=0.0), "lr must be > 0, got 0"),
        (lambda: SigmaAdaptation("pgpe", max_change=1.0), "max_change must be < 1, got 1"),
        (lambda: strategy(linear_policy(), LowRank(), SigmaAdaptation("pgpe")), "LowRank noise cannot have"),
        (lambda: strategy(linear_policy(), Flipout(4), SigmaAdaptation("pgpe")), "got 'rademacher' and 4"),
        (
            lambda: strategy(linear_policy(), Flipout(1, "gaussian"), SigmaAdaptation("pgpe")),
            "got 'gaussian' and 1",
        ),
        (lambda: strategy(linear_policy(), Independent(), "pgpe"), "must be a SigmaAdaptation or None"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_adapt(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
