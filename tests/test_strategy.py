"""Ask and tell against torch.optim stepped by hand, and invariants across generations."""

import io
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.fitness import SHAPINGS, Shaping, raw
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation, Tile, compute_here
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population
from es_flipout.run.build import make_perturbation
from es_flipout.run.config import ESConfig, OptimizerConfig
from es_flipout.strategy import FlipoutES

P = 12


def linear_policy(seed: int = 0) -> nn.Linear:
    policy = nn.Linear(3, 2).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=generator)
    return policy


def strategy(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    population_size: int = P,
    sigma: float = 0.05,
    **options: Any,
) -> FlipoutES:
    return FlipoutES(policy, population_size=population_size, sigma=sigma, optimizer=optimizer, **options)


def weights_of(policy: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Returns a linear policy's tensors in the order of its parameters; families list them in any order."""
    return torch.cat([tensors["weight"].flatten(), tensors["bias"]])


def quadratic(population: Population) -> Tensor:
    """Minus the squared distance of each member's weights from (1, 2, 3, ...)."""
    members = torch.stack([flat(population.member(index)) for index in range(population.size)])
    target = torch.arange(1, members.shape[1] + 1, dtype=members.dtype)
    return -(members - target).square().sum(dim=1)


def generations(es: FlipoutES, count: int, fitness: Callable[[Population], Tensor] = quadratic) -> None:
    for _ in range(count):
        es.tell(fitness(es.ask()))


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


FAMILIES = [
    *((family, True) for family in (Flipout(), Flipout(3, "gaussian"), LowRank(2), Independent())),
    *((family, False) for family in (Flipout(), LowRank(), Independent())),
]
every_family = pytest.mark.parametrize(("perturbation", "antithetic"), FAMILIES, ids=str)


class TestTell:
    @pytest.mark.parametrize("decay", [0.0, 0.3])
    @every_family
    def test_is_adam_on_the_negative_gradient(
        self, perturbation: Perturbation, antithetic: bool, decay: float
    ) -> None:
        policy = linear_policy()
        # A large eps: the default would amplify the rounding error of a gradient that cancels to a full step.
        arguments = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}
        optimizer = torch.optim.Adam(policy.parameters(), **arguments)
        es = strategy(
            policy,
            optimizer,
            sigma=0.2,
            perturbation=perturbation,
            antithetic=antithetic,
            weight_decay=decay,
        )
        weights = weights_of(policy).requires_grad_()
        adam = torch.optim.Adam([weights], **arguments)
        for _ in range(4):
            population = es.ask()
            fitness = quadratic(population)
            ranks = torch.tensor([sorted(fitness.tolist()).index(value) for value in fitness.tolist()])
            utilities = ranks.double() / (P - 1) - 0.5
            eps = [flat(population.noise.member(index)) for index in range(P)]
            gradient = sum(u * e for u, e in zip(utilities.tolist(), eps, strict=True)) / (P * 0.2)
            before = weights.detach().clone()
            weights.grad = -(gradient - decay * before)
            adam.step()
            update = es.tell(fitness)
            torch.testing.assert_close(weights_of(policy), weights.detach(), rtol=1e-10, atol=1e-12)
            assert update.gradient_norm == pytest.approx(float(gradient.norm()))
            assert update.update_norm == pytest.approx(float((weights.detach() - before).norm()))
            assert update.parameter_norm == pytest.approx(float(weights.detach().norm()))

    def test_one_sgd_step_by_hand(self) -> None:
        # One pair, fitness (1, 0), so ranks (1/2, -1/2) and g = (1/2 + 1/2) eps / (2 sigma) = eps.
        # sigma = 0.5 and lr = 0.1: the policy moves by +0.1 eps, towards the better member.
        policy = linear_policy()
        before = weights_of(policy)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        es = strategy(policy, optimizer, population_size=2, sigma=0.5)
        eps = flat(es.ask().noise.member(0))
        es.tell(torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(weights_of(policy), before + 0.1 * eps, rtol=0, atol=1e-14)

    def test_shapes_the_fitness_as_requested(self) -> None:
        # As above, with a shaping that triples: the step is 0.1 x 2 x 3 eps / (2 x 0.5) = 0.6 eps.
        policy = linear_policy()
        before = weights_of(policy)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        es = strategy(
            policy, optimizer, population_size=2, sigma=0.5, fitness_shaping=lambda fitness: 3.0 * fitness
        )
        eps = flat(es.ask().noise.member(0))
        es.tell(torch.tensor([1.0, -1.0]))
        torch.testing.assert_close(weights_of(policy), before + 0.6 * eps, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
    @pytest.mark.parametrize("value", [3.7, -1e6, math.nan])
    def test_equal_fitness_leaves_the_parameters_bit_identical(self, shaping: Shaping, value: float) -> None:
        policy = linear_policy()
        before = weights_of(policy)
        es = strategy(policy, fitness_shaping=shaping)
        es.ask()
        update = es.tell(torch.full((P,), value))
        assert torch.equal(weights_of(policy), before)
        assert update.gradient_norm == update.update_norm == 0.0

    @pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
    def test_nan_counts_as_the_worst_and_does_not_spread(self, shaping: Shaping) -> None:
        # The NaN replaces the lowest return, so ranks do not change; by value it becomes the
        # lowest of the others.
        by_rank = shaping in (SHAPINGS["centered_ranks"], SHAPINGS["nes"])
        results = []
        for bad in (math.nan, -5.0 if by_rank else 0.0):
            es = strategy(linear_policy(), fitness_shaping=shaping)
            es.ask()
            fitness = torch.arange(P, dtype=torch.float64)
            fitness[7] = bad
            es.tell(fitness)
            results.append(weights_of(es.policy))
        assert results[0].isfinite().all()
        assert torch.equal(results[0], results[1])

    def test_float64_utilities_move_a_float32_policy(self) -> None:
        policy = linear_policy().float()
        before = weights_of(policy)
        es = strategy(policy)
        es.ask()
        es.tell(torch.arange(P, dtype=torch.float64))
        assert weights_of(policy).dtype == torch.float32
        assert not torch.equal(weights_of(policy), before)

    def test_leaves_no_gradient_behind(self) -> None:
        es = strategy(linear_policy())
        generations(es, 1)
        assert all(parameter.grad is None for parameter in es.policy.parameters())

    def test_needs_a_population_each_time(self) -> None:
        es = strategy(linear_policy())
        with pytest.raises(RuntimeError, match="call ask first"):
            es.tell(torch.zeros(P))
        generations(es, 1)
        with pytest.raises(RuntimeError, match="call ask first"):
            es.tell(torch.zeros(P))

    @pytest.mark.parametrize("shape", [(P - 1,), (P, 1), (1,), ()], ids=str)
    def test_needs_one_value_per_member(self, shape: tuple[int, ...]) -> None:
        es = strategy(linear_policy())
        before, population = weights_of(es.policy), es.ask()
        with pytest.raises(ValueError, match=rf"fitness must be \[{P}\]"):
            es.tell(torch.zeros(shape))
        assert torch.equal(weights_of(es.policy), before)
        assert es.ask() is population  # the mistake can be corrected


class TestAsk:
    def test_is_the_same_population_until_tell(self) -> None:
        es = strategy(linear_policy())
        population = es.ask()
        assert es.ask() is population
        assert es.generation == 0
        es.tell(quadratic(population))
        assert es.ask() is not population
        assert es.generation == 1

    def test_every_generation_and_every_seed_draw_their_own_noise(self) -> None:
        noises = []
        for seed in (0, 1):
            es = strategy(linear_policy(), seed=seed)
            for _ in range(3):
                noises.append(flat(es.ask().noise.member(0)))
                es.tell(torch.zeros(P))
        assert len({tuple(noise.tolist()) for noise in noises}) == 6

    def test_noise_depends_on_seed_and_generation_only(self) -> None:
        torch.manual_seed(1)
        one = strategy(linear_policy(), seed=5)
        generations(one, 2)
        torch.manual_seed(2)
        other = strategy(linear_policy(seed=1), seed=5)
        generations(other, 2, fitness=lambda population: torch.zeros(population.size))
        assert torch.equal(flat(one.ask().noise.member(3)), flat(other.ask().noise.member(3)))

    def test_has_the_requested_size_and_sigma(self) -> None:
        es = strategy(linear_policy(), sigma=0.3)
        assert es.ask().size == P
        assert es.ask().sigma == 0.3
        es.tell(torch.zeros(P))
        es.sigma = 0.1
        assert es.ask().sigma == 0.1

    def test_default_is_antithetic_flipout_and_adam(self) -> None:
        es = strategy(linear_policy())
        assert es.perturbation == Flipout(num_bases=1, base="rademacher")
        assert es.ask().noise.antithetic
        assert type(es.optimizer) is torch.optim.Adam

    def test_defaults_are_those_of_the_configuration(self) -> None:
        config, optimizer = ESConfig(), OptimizerConfig()
        es = strategy(linear_policy())
        assert es.perturbation == make_perturbation(config)
        assert make_perturbation(replace(config, perturbation="low_rank")) == LowRank()
        assert es.fitness_shaping is SHAPINGS[config.fitness_shaping]
        assert (es.antithetic, es.weight_decay) == (config.antithetic, config.weight_decay)
        assert es.elite_fraction == config.elite_fraction == 1.0
        assert type(es.optimizer).__name__ == optimizer.name
        assert es.optimizer.param_groups[0]["lr"] == optimizer.lr

    @pytest.mark.parametrize("sigma", [0.0, -0.1])
    def test_sigma_must_be_positive(self, sigma: float) -> None:
        with pytest.raises(ValueError, match=f"sigma must be > 0, got {sigma}"):
            strategy(linear_policy(), sigma=sigma)

    @pytest.mark.parametrize("population_size", [0, -2])
    def test_population_must_not_be_empty(self, population_size: int) -> None:
        with pytest.raises(
            ValueError, match=f"population_size must be an integer > 0, got {population_size}"
        ):
            strategy(linear_policy(), population_size=population_size)


class TestComputeTiles:
    def moved(self, perturbation: Perturbation, antithetic: bool, **options: Any) -> Tensor:
        """Returns the weights of a policy of several tiles after two generations of two populations."""
        policy = nn.Linear(600, 500)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()
        es = strategy(policy, perturbation=perturbation, antithetic=antithetic, **options)
        for seed in (1, 2):
            tiles = es.ask().gradient_tiles(torch.zeros(P))
            assert any(tile.is_part for tile in tiles)
            es.ask_more()
            fitness = torch.randn(2 * P, generator=torch.Generator().manual_seed(seed))
            es.tell(fitness, signal_to_noise=True)
        return weights_of(policy)

    @every_family
    def test_in_any_order_moves_the_policy_to_the_same_bits(
        self, perturbation: Perturbation, antithetic: bool
    ) -> None:
        sizes = []

        def backwards(tiles: Sequence[Tile]) -> list[Tensor]:
            sizes.append(len(tiles))
            return compute_here(tiles[::-1])[::-1]

        expected = self.moved(perturbation, antithetic)
        assert torch.equal(self.moved(perturbation, antithetic, compute_tiles=backwards), expected)
        assert len(sizes) == 4  # the gradient and its signal-to-noise ratio, in both generations
        assert len(set(sizes)) == 1

    def test_decides_the_update(self) -> None:
        def nothing(tiles: Sequence[Tile]) -> list[Tensor]:
            return [torch.zeros(tile.shape, dtype=tile.dtype, device=tile.device) for tile in tiles]

        assert not self.moved(Flipout(), True, compute_tiles=nothing).any()
        assert self.moved(Flipout(), True).any()

    def test_all_tiles_are_computed_here_by_default(self) -> None:
        assert strategy(linear_policy()).compute_tiles is compute_here


class TestAskMore:
    def es(self, seed: int = 0, **options: object) -> FlipoutES:
        policy = linear_policy()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        return strategy(policy, optimizer, sigma=0.2, seed=seed, **options)

    @every_family
    def test_the_update_is_the_mean_of_the_single_gradients(
        self, perturbation: Perturbation, antithetic: bool
    ) -> None:
        es = self.es(
            perturbation=perturbation, antithetic=antithetic, fitness_shaping=lambda fitness: fitness
        )
        before = weights_of(es.policy)
        populations = [es.ask(), es.ask_more(), es.ask_more()]
        utilities = torch.randn(3, P, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        gradients = [flat(each.gradient(part)) for each, part in zip(populations, utilities, strict=True)]
        update = es.tell(utilities.flatten())
        mean = torch.stack(gradients).mean(dim=0)
        torch.testing.assert_close(weights_of(es.policy), before + 0.1 * mean, rtol=1e-12, atol=1e-14)
        assert update.gradient_norm == pytest.approx(float(mean.norm()))

    def test_fitness_is_shaped_over_all_populations_together(self) -> None:
        given = []

        def shaping(fitness: Tensor) -> Tensor:
            given.append(fitness.clone())
            return fitness * 0

        es = self.es(fitness_shaping=shaping)
        es.ask()
        es.ask_more()
        es.tell(torch.arange(2.0 * P))
        assert [fitness.tolist() for fitness in given] == [list(range(2 * P))]

    def test_every_population_has_its_own_noise(self) -> None:
        noises = []
        for seed in (0, 1):
            es = self.es(seed)
            for _ in range(2):
                populations = [es.ask(), es.ask_more(), es.ask_more()]
                noises += [flat(each.noise.member(0)) for each in populations]
                es.tell(torch.zeros(3 * P))
        assert len({tuple(noise.tolist()) for noise in noises}) == 12

    def test_asking_again_discards_the_further_populations(self) -> None:
        es = self.es()
        first, noise = es.ask(), flat(es.ask_more().noise.member(5))
        assert es.ask() is first
        assert torch.equal(flat(es.ask_more().noise.member(5)), noise)
        assert es.ask() is first
        es.tell(torch.zeros(P))

    def test_further_populations_change_no_other_noise(self) -> None:
        es, alone = self.es(), self.es()
        first = es.ask()
        es.ask_more()
        assert torch.equal(flat(first.noise.member(5)), flat(alone.ask().noise.member(5)))
        es.tell(torch.zeros(2 * P))
        alone.tell(torch.zeros(P))
        assert es.generation == alone.generation == 1
        assert torch.equal(flat(es.ask().noise.member(5)), flat(alone.ask().noise.member(5)))

    @pytest.mark.parametrize("shape", [(P,), (2, P), (3 * P,), (2 * P - 1,)], ids=str)
    def test_the_fitness_of_all_populations_is_needed(self, shape: tuple[int, ...]) -> None:
        es = self.es()
        es.ask()
        es.ask_more()
        with pytest.raises(ValueError, match=rf"fitness must be \[{2 * P}\], got"):
            es.tell(torch.zeros(shape))
        es.tell(torch.zeros(2 * P))  # the mistake can be corrected


class TestState:
    def test_a_loaded_state_continues_bit_identically(self) -> None:
        es = strategy(linear_policy(), seed=3)
        generations(es, 3)
        state = saved_and_loaded(es.state_dict())
        generations(es, 3)

        resumed = strategy(linear_policy(seed=1), seed=3)
        resumed.load_state_dict(state)
        assert resumed.generation == 3
        generations(resumed, 3)
        assert torch.equal(weights_of(resumed.policy), weights_of(es.policy))

        # Without the optimizer's moments it would not: the comparison above is not trivial.
        forgetful = strategy(linear_policy(seed=1), seed=3)
        forgetful.load_state_dict({**state, "optimizer": forgetful.optimizer.state_dict()})
        generations(forgetful, 3)
        assert not torch.equal(weights_of(forgetful.policy), weights_of(es.policy))

    def test_observation_moments_travel(self) -> None:
        def build() -> MLPPolicy:
            return MLPPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), hidden_sizes=(4,))

        es, resumed = (strategy(build()) for _ in range(2))
        seen = es.policy.normalizer.statistics()
        seen.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]))
        es.policy.normalizer.merge(seen)
        resumed.load_state_dict(saved_and_loaded(es.state_dict()))
        assert resumed.policy.normalizer.mean.tolist() == [2.0, 2.0, 5.0]

    def test_loading_drops_a_population_asked_for_before(self) -> None:
        es = strategy(linear_policy())
        generations(es, 2)
        resumed = strategy(linear_policy())
        resumed.ask()
        resumed.load_state_dict(saved_and_loaded(es.state_dict()))
        assert torch.equal(flat(resumed.ask().member(0)), flat(es.ask().member(0)))


class TestProgress:
    @every_family
    @pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
    def test_reaches_the_top_of_a_quadratic(
        self, shaping: Shaping, perturbation: Perturbation, antithetic: bool
    ) -> None:
        policy = linear_policy()
        target = torch.arange(1, 9, dtype=torch.float64)
        start = (weights_of(policy) - target).norm()
        es = strategy(
            policy,
            torch.optim.Adam(policy.parameters(), lr=0.4),
            population_size=18,
            sigma=0.1,
            perturbation=perturbation,
            antithetic=antithetic,
            fitness_shaping=shaping,
        )
        generations(es, 60)
        assert (weights_of(policy) - target).norm() < 0.1 * start

    def test_climbs_a_linear_fitness_seen_through_actions(self) -> None:
        # The first action's mean over ten observations of ones is w_11 + w_12 + w_13 + b_1: it must rise,
        # while the second action, which is not rewarded, only drifts.
        policy = linear_policy()
        before = policy(torch.ones(1, 3, dtype=torch.float64)).detach()[0]
        es = strategy(
            policy,
            torch.optim.SGD(policy.parameters(), lr=0.1),
            population_size=64,
            sigma=0.1,
            fitness_shaping=raw,
        )
        members = torch.arange(64).repeat_interleave(10)
        for _ in range(20):
            actions = es.ask().select(members)(torch.ones(640, 3, dtype=torch.float64))
            es.tell(actions[:, 0].view(64, 10).mean(dim=1))
        rise = policy(torch.ones(1, 3, dtype=torch.float64)).detach()[0] - before
        # Exact gradient: 4 weights of slope 1, 20 steps of 0.1: 8.
        assert float(rise[0]) == pytest.approx(8.0, rel=0.2)
        assert abs(float(rise[1])) < 2.0


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
            ({"sigma": math.nan}, "sigma must be > 0, got nan"),
            ({"fitness_shaping": "ranks"}, "'ranks' is not one of centered_ranks, standardized, nes, raw"),
        ],
        ids=str,
    )
    def test_a_value_that_is_not_allowed_is_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            strategy(linear_policy(), **options)

    def test_a_policy_with_nothing_to_train_is_refused(self) -> None:
        with pytest.raises(ValueError, match="the policy has no parameter that requires a gradient"):
            strategy(linear_policy().requires_grad_(False))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_a_compiled_policy_is_refused(self) -> None:
        for compiled in (torch.compile(linear_policy()), nn.Sequential(torch.jit.script(linear_policy()))):
            with pytest.raises(ValueError, match="pass the policy that was compiled"):
                strategy(compiled)

    def test_an_optimizer_that_does_not_fit_is_refused(self) -> None:
        policy = nn.Sequential(linear_policy(), linear_policy())
        with pytest.raises(ValueError, match=r"does not have the parameter '1.weight'"):
            strategy(policy, torch.optim.SGD(policy[0].parameters(), lr=0.1))
        with pytest.raises(ValueError, match="must not maximize"):
            strategy(policy, torch.optim.SGD(policy.parameters(), lr=0.1, maximize=True))

    def test_parameters_may_be_frozen_between_generations(self) -> None:
        policy = nn.Sequential(linear_policy(), nn.Linear(2, 2).double())
        es = strategy(policy)
        generations(es, 1, lambda population: torch.arange(12.0))
        policy[0].requires_grad_(False)
        before = weights_of(policy[0])
        es.ask()
        update = es.tell(torch.arange(12.0))
        assert torch.equal(weights_of(policy[0]), before)
        assert math.isnan(update.update_cosine)  # not comparable with the last update

    @pytest.mark.parametrize("convert", [Tensor.tolist, Tensor.numpy, Tensor.float], ids=str)
    def test_fitness_may_be_a_list_or_an_array(self, convert: Callable[[Tensor], Any]) -> None:
        results = []
        for fitness in (torch.arange(12.0), convert(torch.arange(12.0))):
            es = strategy(linear_policy())
            es.ask()
            es.tell(fitness)
            results.append(weights_of(es.policy))
        assert torch.equal(*results)

    @pytest.mark.parametrize("name", SHAPINGS)
    def test_a_shaping_is_found_by_its_name(self, name: str) -> None:
        assert strategy(linear_policy(), fitness_shaping=name).fitness_shaping is SHAPINGS[name]


def test_frozen_parameters_are_neither_perturbed_nor_moved() -> None:
    policy = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    policy[0].requires_grad_(False)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    es = strategy(policy, torch.optim.SGD(policy.parameters(), lr=0.1), weight_decay=0.5)
    population = es.ask()
    es.tell(torch.arange(12.0))
    for name, value in policy.state_dict().items():
        is_shared = name.startswith("0.") or "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) == is_shared
        assert torch.equal(population.member(3)[name], before[name]) == is_shared


def test_weight_decay_pulls_the_weights_towards_zero() -> None:
    # No gradient (all fitness equal): theta <- theta - lr * lambda * theta = (1 - 0.1 x 0.5) theta.
    policy = linear_policy()
    before = weights_of(policy)
    es = strategy(policy, torch.optim.SGD(policy.parameters(), lr=0.1), weight_decay=0.5)
    es.ask()
    update = es.tell(torch.zeros(P))
    torch.testing.assert_close(weights_of(policy), 0.95 * before, rtol=0, atol=1e-15)
    assert update.gradient_norm == 0.0
    assert update.update_ratio == pytest.approx(0.05)


def tell_in_direction(es: FlipoutES, member: int) -> Any:
    """Tells that one member is better and its mirror image equally worse: the gradient is its noise."""
    es.ask()
    fitness = torch.zeros(P)
    fitness[member], fitness[member ^ 1] = 1.0, -1.0
    return es.tell(fitness)


class TestDiagnostics:
    def sgd(self, sigma: float = 0.5) -> FlipoutES:
        policy = linear_policy()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        return strategy(policy, optimizer, sigma=sigma, fitness_shaping="raw", perturbation=Independent())

    def test_cosine_and_ratio_are_of_the_updates(self) -> None:
        es, points = self.sgd(), []
        for member in (0, 3, 8):
            points.append(weights_of(es.policy))
            update = tell_in_direction(es, member)
        points.append(weights_of(es.policy))
        steps = [after - before for before, after in itertools.pairwise(points)]
        assert update.update_cosine == pytest.approx(float(torch.cosine_similarity(*steps[1:], dim=0)))
        assert update.update_ratio == pytest.approx(float(steps[2].norm() / points[2].norm()))

    def test_the_first_update_has_no_cosine(self) -> None:
        assert math.isnan(tell_in_direction(self.sgd(), 0).update_cosine)

    def test_the_cosine_survives_saving(self) -> None:
        es, resumed = self.sgd(), self.sgd()
        tell_in_direction(es, 2)
        resumed.load_state_dict(saved_and_loaded(es.state_dict()))
        assert tell_in_direction(resumed, 5) == tell_in_direction(es, 5)

    @pytest.mark.parametrize(
        ("fitness", "share"),
        [
            ([0.0] * 12, 1.0),
            (range(12), 0.0),
            ([1, 1, 2, 3, 4, 4, 4, 7, 8, 9, 10, 11], 5 / 12),
            ([math.nan, math.inf, *range(10)], 2 / 12),  # both failed
        ],
        ids=["all", "none", "some", "failed"],
    )
    def test_ties(self, fitness: Sequence[float], share: float) -> None:
        es = self.sgd()
        es.ask()
        assert es.tell(torch.tensor(list(fitness), dtype=torch.float64)).tied_fraction == pytest.approx(share)

    def test_signal_to_noise_is_only_estimated_on_request(self) -> None:
        assert tell_in_direction(self.sgd(), 0).signal_to_noise is None

    @pytest.mark.slow
    def test_signal_to_noise_of_a_linear_fitness(self) -> None:
        # 64 pairs of independent Gaussian noise, d = 8 weights, fitness <G, theta>: the variance is
        # (d + 1) / 64 |G|², so the ratio is 64 / 9 = 7.1. Of 200 estimates the numerator is within 1.4 % of
        # |G|² and the denominator within 4.2 % of the variance; the median ratio is compared.
        es = strategy(
            linear_policy(), population_size=128, sigma=0.1, perturbation=Independent(), fitness_shaping="raw"
        )
        slope = torch.linspace(-1, 1, 8, dtype=torch.float64)
        inverse = []
        for generation in range(200):
            es.generation = generation
            members = [flat(es.ask().member(index)) for index in range(0, 128, 2)]
            plus = torch.stack(members) @ slope
            middle = weights_of(es.policy) @ slope
            fitness = torch.stack([plus, 2 * middle - plus], dim=1).flatten()
            inverse.append(1 / es.tell(fitness, signal_to_noise=True).signal_to_noise)
        assert statistics.median(inverse) == pytest.approx(9 / 64, rel=0.15)

    def test_pure_noise_has_no_signal(self) -> None:
        es = strategy(linear_policy(), population_size=128, sigma=0.1, perturbation=Independent())
        ratios = []
        for generation in range(200):
            es.ask()
            fitness = torch.randn(128, generator=torch.Generator().manual_seed(generation))
            ratios.append(es.tell(fitness, signal_to_noise=True).signal_to_noise)
        assert abs(statistics.median(ratios)) < 0.15

    def test_equal_fitness_has_no_ratio(self) -> None:
        es = self.sgd()
        es.ask()
        assert math.isnan(es.tell(torch.zeros(P), signal_to_noise=True).signal_to_noise)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_inference_mode_may_be_on_or_off(asked: bool, told: bool) -> None:
    results = []
    for modes in ((asked, told), (False, False)):
        policy = linear_policy()
        es = strategy(policy)
        for _ in range(2):
            with torch.inference_mode(modes[0]):
                population = es.ask()
                fitness = population(torch.ones(P, 3, dtype=torch.float64)).sum(dim=1)
            with torch.inference_mode(modes[1]):
                es.tell(fitness)
        es.tell(es.ask()(torch.ones(P, 3, dtype=torch.float64)).sum(dim=1).detach())
        assert all(p.requires_grad and p.grad is None for p in policy.parameters())
        (policy(torch.ones(3, dtype=torch.float64)).sum()).backward()  # autograd still works
        results.append(weights_of(policy))
    assert torch.equal(*results)
