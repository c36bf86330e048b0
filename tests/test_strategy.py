"""Ask and tell against torch.optim stepped by hand, and what must hold from generation to generation."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.config import OptimizerConfig
from es_flipout.fitness import SHAPINGS, Shaping, raw
from es_flipout.perturbations import Flipout, Independent, Perturbation
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population
from es_flipout.strategy import FlipoutES, make_optimizer

P = 12


def linear_policy(seed: int = 0) -> nn.Linear:
    policy = nn.Linear(3, 2).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=generator)
    return policy


def weights_of(policy: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Returns a linear policy's tensors in the order of its parameters; a family may list them in any."""
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


class TestTell:
    @pytest.mark.parametrize(
        "perturbation", [Flipout(), Flipout("gaussian", 3), Independent(mirrored=False)], ids=str
    )
    def test_is_adam_on_the_negative_gradient(self, perturbation: Perturbation) -> None:
        policy = linear_policy()
        # A large eps: the default would blow the rounding error of a gradient that cancels up to a step.
        arguments = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}
        optimizer = torch.optim.Adam(policy.parameters(), **arguments)
        es = FlipoutES(policy, optimizer, population_size=P, sigma=0.2, perturbation=perturbation)
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
            weights.grad = -gradient
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
        es = FlipoutES(policy, optimizer, population_size=2, sigma=0.5)
        eps = flat(es.ask().noise.member(0))
        es.tell(torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(weights_of(policy), before + 0.1 * eps, rtol=0, atol=1e-14)

    def test_shapes_the_fitness_as_told(self) -> None:
        # As above, with a shaping that trebles: the step is 0.1 x 2 x 3 eps / (2 x 0.5) = 0.6 eps.
        policy = linear_policy()
        before = weights_of(policy)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        es = FlipoutES(
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
        es = FlipoutES(policy, population_size=P, fitness_shaping=shaping)
        es.ask()
        update = es.tell(torch.full((P,), value))
        assert torch.equal(weights_of(policy), before)
        assert update.gradient_norm == update.update_norm == 0.0

    @pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
    def test_nan_counts_as_the_worst_and_poisons_nothing(self, shaping: Shaping) -> None:
        # The NaN stands where the lowest return stood, so by rank nothing changes; by value it becomes the
        # lowest of the others.
        by_rank = shaping in (SHAPINGS["centered_ranks"], SHAPINGS["nes"])
        results = []
        for bad in (math.nan, -5.0 if by_rank else 0.0):
            es = FlipoutES(linear_policy(), population_size=P, fitness_shaping=shaping)
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
        es = FlipoutES(policy, population_size=P)
        es.ask()
        es.tell(torch.arange(P, dtype=torch.float64))
        assert weights_of(policy).dtype == torch.float32
        assert not torch.equal(weights_of(policy), before)

    def test_leaves_no_gradient_behind(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P)
        generations(es, 1)
        assert all(parameter.grad is None for parameter in es.policy.parameters())

    def test_needs_a_population_each_time(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P)
        with pytest.raises(RuntimeError, match="call ask first"):
            es.tell(torch.zeros(P))
        generations(es, 1)
        with pytest.raises(RuntimeError, match="call ask first"):
            es.tell(torch.zeros(P))

    @pytest.mark.parametrize("shape", [(P - 1,), (P, 1), (1,), ()], ids=str)
    def test_needs_one_return_a_member(self, shape: tuple[int, ...]) -> None:
        es = FlipoutES(linear_policy(), population_size=P)
        before, population = weights_of(es.policy), es.ask()
        with pytest.raises(ValueError, match=rf"fitness must be \[{P}\]"):
            es.tell(torch.zeros(shape))
        assert torch.equal(weights_of(es.policy), before)
        assert es.ask() is population  # the mistake can be put right


class TestAsk:
    def test_is_the_same_population_until_tell(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P)
        population = es.ask()
        assert es.ask() is population
        assert es.generation == 0
        es.tell(quadratic(population))
        assert es.ask() is not population
        assert es.generation == 1

    def test_every_generation_and_every_seed_draw_their_own_noise(self) -> None:
        noises = []
        for seed in (0, 1):
            es = FlipoutES(linear_policy(), population_size=P, seed=seed)
            for _ in range(3):
                noises.append(flat(es.ask().noise.member(0)))
                es.tell(torch.zeros(P))
        assert len({tuple(noise.tolist()) for noise in noises}) == 6

    def test_noise_depends_on_seed_and_generation_only(self) -> None:
        torch.manual_seed(1)
        one = FlipoutES(linear_policy(), population_size=P, seed=5)
        generations(one, 2)
        torch.manual_seed(2)
        other = FlipoutES(linear_policy(seed=1), population_size=P, seed=5)
        generations(other, 2, fitness=lambda population: torch.zeros(population.size))
        assert torch.equal(flat(one.ask().noise.member(3)), flat(other.ask().noise.member(3)))

    def test_has_the_size_and_sigma_asked_for(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P, sigma=0.3)
        assert es.ask().size == P
        assert es.ask().sigma == 0.3
        es.tell(torch.zeros(P))
        es.sigma = 0.1
        assert es.ask().sigma == 0.1

    def test_default_is_mirrored_flipout_and_adam(self) -> None:
        es = FlipoutES(linear_policy())
        assert es.perturbation == Flipout("rademacher", num_bases=1, mirrored=True)
        assert type(es.optimizer) is torch.optim.Adam
        assert es.ask().size == 256

    @pytest.mark.parametrize("sigma", [0.0, -0.1])
    def test_sigma_must_be_positive(self, sigma: float) -> None:
        with pytest.raises(ValueError, match=f"sigma must be > 0, got {sigma}"):
            FlipoutES(linear_policy(), sigma=sigma)

    @pytest.mark.parametrize("population_size", [0, -2])
    def test_population_must_not_be_empty(self, population_size: int) -> None:
        with pytest.raises(ValueError, match=f"population_size must be >= 1, got {population_size}"):
            FlipoutES(linear_policy(), population_size=population_size)


class TestAskMore:
    def es(self, seed: int = 0, **options: object) -> FlipoutES:
        policy = linear_policy()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        return FlipoutES(policy, optimizer, population_size=P, sigma=0.2, seed=seed, **options)

    @pytest.mark.parametrize(
        "perturbation", [Flipout(), Flipout("gaussian", 3), Independent(mirrored=False)], ids=str
    )
    def test_the_update_is_the_mean_of_the_single_gradients(self, perturbation: Perturbation) -> None:
        es = self.es(perturbation=perturbation, fitness_shaping=lambda fitness: fitness)
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

    def test_every_population_has_noise_of_its_own(self) -> None:
        noises = []
        for seed in (0, 1):
            es = self.es(seed)
            for _ in range(2):
                populations = [es.ask(), es.ask_more(), es.ask_more()]
                noises += [flat(each.noise.member(0)) for each in populations]
                es.tell(torch.zeros(3 * P))
        assert len({tuple(noise.tolist()) for noise in noises}) == 12

    def test_asking_anew_forgets_the_further_populations(self) -> None:
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
        es.tell(torch.zeros(2 * P))  # the mistake can be put right


class TestState:
    def test_a_loaded_state_continues_bit_identically(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P, seed=3)
        generations(es, 3)
        state = saved_and_loaded(es.state_dict())
        generations(es, 3)

        resumed = FlipoutES(linear_policy(seed=1), population_size=P, seed=3)
        resumed.load_state_dict(state)
        assert resumed.generation == 3
        generations(resumed, 3)
        assert torch.equal(weights_of(resumed.policy), weights_of(es.policy))

        # Without the optimizer's moments it would not: what is compared above is not trivially equal.
        forgetful = FlipoutES(linear_policy(seed=1), population_size=P, seed=3)
        forgetful.load_state_dict({**state, "optimizer": forgetful.optimizer.state_dict()})
        generations(forgetful, 3)
        assert not torch.equal(weights_of(forgetful.policy), weights_of(es.policy))

    def test_observation_moments_travel(self) -> None:
        def build() -> MLPPolicy:
            return MLPPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), hidden_sizes=(4,))

        es, resumed = (FlipoutES(build(), population_size=P) for _ in range(2))
        seen = es.policy.normalizer.statistics()
        seen.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]))
        es.policy.normalizer.merge(seen)
        resumed.load_state_dict(saved_and_loaded(es.state_dict()))
        assert resumed.policy.normalizer.mean.tolist() == [2.0, 2.0, 5.0]

    def test_loading_drops_a_population_asked_for_before(self) -> None:
        es = FlipoutES(linear_policy(), population_size=P)
        generations(es, 2)
        resumed = FlipoutES(linear_policy(), population_size=P)
        resumed.ask()
        resumed.load_state_dict(saved_and_loaded(es.state_dict()))
        assert torch.equal(flat(resumed.ask().member(0)), flat(es.ask().member(0)))


class TestProgress:
    @pytest.mark.parametrize(
        "perturbation",
        [
            Flipout(),
            Flipout("gaussian", 3),
            Flipout(mirrored=False),
            Independent(),
            Independent(mirrored=False),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
    def test_reaches_the_top_of_a_quadratic(self, shaping: Shaping, perturbation: Perturbation) -> None:
        policy = linear_policy()
        target = torch.arange(1, 9, dtype=torch.float64)
        start = (weights_of(policy) - target).norm()
        es = FlipoutES(
            policy,
            torch.optim.Adam(policy.parameters(), lr=0.4),
            population_size=18,
            sigma=0.1,
            perturbation=perturbation,
            fitness_shaping=shaping,
        )
        generations(es, 60)
        assert (weights_of(policy) - target).norm() < 0.1 * start

    def test_climbs_a_linear_fitness_seen_through_actions(self) -> None:
        # The first action's mean over ten observations of ones is w_11 + w_12 + w_13 + b_1: it must rise,
        # while the second action, which nothing rewards, only drifts.
        policy = linear_policy()
        before = policy(torch.ones(1, 3, dtype=torch.float64)).detach()[0]
        es = FlipoutES(
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


class TestMakeOptimizer:
    @pytest.mark.parametrize(
        "name",
        [
            *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam"),
            *("RMSprop", "Rprop", "SGD"),
        ],
    )
    def test_every_optimizer_of_torch_climbs(self, name: str) -> None:
        policy = linear_policy()
        optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.02), policy)
        assert type(optimizer) is getattr(torch.optim, name)
        assert {group["lr"] for group in optimizer.param_groups} == {0.02}
        es = FlipoutES(policy, optimizer, population_size=64, sigma=0.1)
        before = weights_of(policy)
        generations(es, 5)
        target = torch.arange(1, 9, dtype=torch.float64)
        assert (weights_of(policy) - target).norm() < (before - target).norm()

    def test_optimizes_all_parameters(self) -> None:
        policy = linear_policy()
        optimizer = make_optimizer(OptimizerConfig(), policy)
        (group,) = optimizer.param_groups
        assert {id(parameter) for parameter in group["params"]} == {id(p) for p in policy.parameters()}

    def test_passes_weight_decay_and_further_arguments(self) -> None:
        config = OptimizerConfig(name="SGD", weight_decay=0.1, kwargs={"momentum": 0.5, "nesterov": True})
        (group,) = make_optimizer(config, linear_policy()).param_groups
        assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 0.5, True)

    @pytest.mark.parametrize("name", ["Adamm", "adam", "LBFGS", "SparseAdam", "Optimizer", "lr_scheduler"])
    def test_an_unusable_name_gets_the_list_of_usable_ones(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=f"'{name}' is not available; choose one of .*Adam, AdamW.*SGD"
        ) as caught:
            make_optimizer(OptimizerConfig(name=name), linear_policy())
        assert "LBFGS" not in str(caught.value).split("choose one of")[1]
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("config", "clue"),
        [
            (OptimizerConfig(kwargs={"momentum": 0.9}), "momentum"),
            (OptimizerConfig(kwargs={"betas": [0.9, 2.0]}), "beta"),
            (OptimizerConfig(name="Rprop", weight_decay=0.1), "weight_decay"),
            (OptimizerConfig(name="SGD", kwargs={"nesterov": True}), "momentum"),
        ],
        ids=["unknown", "out-of-range", "no-weight-decay", "contradictory"],
    )
    def test_bad_arguments_get_one_line_that_names_them(self, config: OptimizerConfig, clue: str) -> None:
        with pytest.raises(ValueError, match=f"^optimizer {config.name}: ") as caught:
            make_optimizer(config, linear_policy())
        assert clue in str(caught.value).lower()
        assert "\n" not in str(caught.value)
