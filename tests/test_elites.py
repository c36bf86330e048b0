"""Elites: which members make an update, and that it is ARS's."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from es_flipout import Config, FlipoutES
from es_flipout.elites import elite_members, elite_utilities
from es_flipout.fitness import SHAPINGS, raw, standardized
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.population import Population
from es_flipout.run.build import make_strategy
from es_flipout.run.config import ESConfig

NAN, INF = math.nan, math.inf
PAIRS = [1.0, 2.0, 9.0, 0.0, 3.0, 4.0, 5.0, 5.0]
"""Fitness of four pairs, whose better members have 2, 9, 4 and 5: by rank, pairs 1, 3, 2 and 0."""

every_noise = pytest.mark.parametrize(
    "perturbation", [Flipout(), Flipout(2, "gaussian"), LowRank(), Independent()], ids=str
)


def chosen(fitness: list[float], fraction: float, *, antithetic: bool = True) -> list[int]:
    return elite_members(torch.tensor(fitness).double(), fraction, antithetic=antithetic).tolist()


class TestElites:
    @pytest.mark.parametrize(
        ("fraction", "members"),
        [
            (0.01, [2, 3]),  # 0.04 pairs: at least one
            (0.25, [2, 3]),
            (0.5, [2, 3, 6, 7]),
            (0.7, [2, 3, 4, 5, 6, 7]),  # 2.8 pairs
            (0.8, [2, 3, 4, 5, 6, 7]),  # 3.2 pairs
            (1.0, list(range(8))),
        ],
    )
    def test_are_the_pairs_with_the_best_members_in_order(self, fraction: float, members: list[int]) -> None:
        assert chosen(PAIRS, fraction) == members

    def test_are_the_best_members_where_there_are_no_pairs(self) -> None:
        assert chosen(PAIRS, 0.5, antithetic=False) == [2, 5, 6, 7]
        assert chosen([3.0, 7.0, 5.0, 4.0], 0.6, antithetic=False) == [1, 2]  # 2.4, rounded
        assert chosen([3.0, 7.0, 5.0], 0.01, antithetic=False) == [1, 2]  # one alone is no better than others

    def test_a_pair_with_one_failed_member_is_ranked_by_the_other(self) -> None:
        # Better members: 1, 8, none, 3. An infinite return has failed, too.
        fitness = [1.0, 0.0, NAN, 8.0, INF, NAN, -INF, 3.0]
        assert chosen(fitness, 0.25) == [2, 3]
        assert chosen(fitness, 0.5) == [2, 3, 6, 7]
        assert chosen(fitness, 0.75) == [0, 1, 2, 3, 6, 7]
        assert chosen(fitness, 0.5, antithetic=False) == [0, 1, 3, 7]

    def test_of_equal_directions_the_first_are_taken(self) -> None:
        assert chosen([5.0, 1.0, 7.0, 0.0, 2.0, 5.0, 0.0, 5.0], 0.5) == [0, 1, 2, 3]
        assert chosen([NAN] * 6, 0.4) == [0, 1]
        assert chosen([2.0] * 40, 0.1, antithetic=False) == [0, 1, 2, 3]


class TestUtilities:
    def test_are_shaped_among_elites_and_scaled_to_their_mean(self) -> None:
        # 9, 0, 5, 5 have the mean 4.75 and the squared deviations 18.0625, 22.5625 and twice 0.0625, with the
        # mean 10.1875. 8 members of which 4 are chosen: twice the utility.
        members, fitness = torch.tensor([2, 3, 6, 7]), torch.tensor(PAIRS).double()
        expected = [2 * value / math.sqrt(10.1875) for value in (4.25, -4.75, 0.25, 0.25)]
        utilities = elite_utilities(standardized, fitness, members)
        assert utilities.tolist() == pytest.approx([0, 0, *expected[:2], 0, 0, *expected[2:]])

    def test_a_failed_elite_counts_as_the_worst_of_the_elites(self) -> None:
        # 8 and its failed twin, 1 and 3: the twin counts as 1, not as the 0 of a member that is no elite.
        # Mean 13 / 4 = 3.25; 6 members of which 4 are chosen: 3/2 of 4.75, -2.25, -2.25 and -0.25.
        fitness = torch.tensor([8.0, NAN, 0.0, 0.5, 1.0, 3.0]).double()
        utilities = elite_utilities(raw, fitness, torch.tensor([0, 1, 4, 5]))
        assert utilities.tolist() == [7.125, -3.375, 0, 0, -3.375, -0.375]

    def test_of_all_members_are_those_without_elites(self) -> None:
        fitness = torch.randn(10, dtype=torch.float64)
        for shaping in SHAPINGS.values():
            assert torch.equal(elite_utilities(shaping, fitness, torch.arange(10)), shaping(fitness))

    def test_an_error_names_the_member(self) -> None:
        with pytest.raises(ValueError, match="returned the utility nan for member 5"):
            elite_utilities(
                lambda fitness: fitness.where(fitness < 9, NAN),
                torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0]).double(),
                torch.tensor([2, 3, 4, 5]),
            )


def linear_policy() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def strategy(**options: Any) -> FlipoutES:
    policy = linear_policy()
    settings = {"population_size": 12, "sigma": 0.05, **options}
    return FlipoutES(policy, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1), **settings)


def weights_of(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensors["weight"].detach().flatten().numpy(), tensors["bias"].detach().numpy()])


def ars_step(center: np.ndarray, deltas: np.ndarray, returns: np.ndarray, top: int, alpha: float) -> Any:
    """The update of Mania et al., 2018, algorithm 2, V1-t: the center after it.

    Args:
        center: M.
        deltas: delta_1 ... delta_N, [N, d].
        returns: r+ and r- of each, [N, 2].
        top: b.
        alpha: the step size.
    """
    best = np.argsort(-returns.max(axis=1))[:top]
    deviation = returns[best].std()
    steps = [(returns[k, 0] - returns[k, 1]) * deltas[k] for k in best]
    return center + alpha / (top * deviation) * np.sum(steps, axis=0)


@every_noise
@pytest.mark.parametrize(("populations", "top"), [(1, 2), (1, 5), (2, 4)])
def test_the_update_is_that_of_ars(perturbation: Perturbation, populations: int, top: int) -> None:
    sigma, alpha, pairs = 0.05, 0.02, 8
    policy = linear_policy()
    es = FlipoutES(
        policy,
        population_size=2 * pairs,
        sigma=sigma,
        optimizer=torch.optim.SGD(policy.parameters(), lr=2 * alpha * sigma),
        perturbation=perturbation,
        fitness_shaping="standardized",
        elite_fraction=top / (populations * pairs),
    )
    asked = [es.ask()] + [es.ask_more() for _ in range(populations - 1)]
    center = weights_of(policy.state_dict())
    deltas = [(weights_of(each.member(2 * k)) - center) / sigma for each in asked for k in range(pairs)]
    returns = np.random.default_rng(0).normal(100.0, 30.0, (populations * pairs, 2))
    expected = ars_step(center, np.array(deltas), returns, top, alpha)
    es.tell(returns.flatten())
    np.testing.assert_allclose(weights_of(policy.state_dict()), expected, rtol=1e-9, atol=1e-12)
    assert np.abs(expected - center).max() > 1e-3


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("value", [3.7, NAN])
def test_equal_fitness_moves_nothing(shaping: Any, antithetic: bool, value: float) -> None:
    es = strategy(fitness_shaping=shaping, elite_fraction=0.5, antithetic=antithetic)
    before = weights_of(es.policy.state_dict())
    es.ask()
    assert es.tell([value] * 12).gradient_norm == 0.0
    # Nor do equal elites, whatever the others have.
    es.ask()
    assert es.tell([2.0] * 6 + [1.0, 0.0, NAN, 1.5, 0.5, 0.1]).gradient_norm == 0.0
    assert np.array_equal(weights_of(es.policy.state_dict()), before)


def test_without_pairs_the_gradient_is_the_mean_over_the_best_members() -> None:
    # Of the fitness 0 ... 11 the best quarter is 9, 10 and 11: raw utilities -1, 0 and 1, so that
    # g = (eps_11 - eps_9) / (3 sigma), and SGD moves by 0.1 g.
    es = strategy(antithetic=False, fitness_shaping="raw", elite_fraction=0.25)
    before, population = weights_of(es.policy.state_dict()), es.ask()
    difference = weights_of(population.noise.member(11)) - weights_of(population.noise.member(9))
    es.tell(range(12))
    step = weights_of(es.policy.state_dict()) - before
    np.testing.assert_allclose(step, 0.1 * difference / (3 * 0.05), rtol=1e-9, atol=1e-12)


def test_signal_to_noise_compares_halves_of_the_elites() -> None:
    # Better members by pair: 5, 1, 9, 0, 7, 3. Half of the pairs are 0, 2 and 4, with the raw utilities of
    # 5, 2, 9, 6, 7, 4, whose mean is 5.5. The halves are the pairs 0 and 4, and the pair 2.
    es = strategy(perturbation=Independent(), fitness_shaping="raw", elite_fraction=0.5)
    population: Population = es.ask()
    noise = [weights_of(population.noise.member(2 * pair)) for pair in range(6)]
    update = es.tell([5, 2, 1, 0, 9, 6, 0, -1, 7, 4, 3, 3], signal_to_noise=True)
    scale = 2 / (6 * 0.05)  # of the six elites; twice, for half of them make an estimate of all
    first, second = scale * (3 * noise[0] + 3 * noise[4]), scale * 3 * noise[2]
    expected = first @ second / (((first - second) ** 2).sum() / 4)
    assert update.signal_to_noise == pytest.approx(expected)
    assert update.gradient_norm == pytest.approx(np.linalg.norm(first + second) / 2)


def test_the_share_is_that_of_the_configuration() -> None:
    config = Config(es=ESConfig(elite_fraction=0.25))
    assert make_strategy(config, linear_policy()).elite_fraction == 0.25


def test_signal_to_noise_needs_two_directions() -> None:
    es = strategy(elite_fraction=0.01)
    es.ask()
    assert math.isnan(es.tell(range(12), signal_to_noise=True).signal_to_noise)
