"""What a user hands to the strategy, changes between calls, copies and loads: served exactly, or refused."""

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from es_flipout.fitness import SHAPINGS, as_fitness
from es_flipout.optimizers import FLOAT16_EPS, make_optimizer
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.strategy import FlipoutES

P = 8
ROWS = torch.tensor([[1.0], [0.0], [2.0]])
FITNESS = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def strategy(policy: nn.Module | None = None, **options: Any) -> FlipoutES:
    return FlipoutES(policy or network(), **{"population_size": P, "sigma": 0.1, **options})


def generation(es: FlipoutES, fitness: Any = FITNESS) -> Any:
    es.ask()
    return es.tell(fitness)


def weights(es: FlipoutES) -> Tensor:
    return torch.cat([value.detach().flatten().clone() for value in es.policy.parameters()])


def after(fitness: Any, **options: Any) -> Tensor:
    """Returns the weights after a generation."""
    es = strategy(**options)
    generation(es, fitness)
    return weights(es)


class Foreign:
    """An array of another library."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)


numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.integers(2**53, 2**53 + 9), st.booleans(), st.just(1e39)
)
CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda values: (value for value in values),
    "dict values": lambda values: dict(enumerate(values)).values(),
    "scalars": lambda values: [np.float64(value) for value in values],
    "tensors": lambda values: [torch.tensor(float(value), dtype=torch.float64) for value in values],
    "mixed": lambda values: [
        np.float64(values[0]),
        torch.tensor(float(values[1]), dtype=torch.float64),
        *values[2:],
    ],
    "array": lambda values: np.array([float(value) for value in values]),
    "reversed array": lambda values: np.array([float(value) for value in values[::-1]])[::-1],
    "big-endian array": lambda values: np.array([float(value) for value in values], dtype=">f8"),
    "foreign": lambda values: Foreign([float(value) for value in values]),
    "tensor": lambda values: torch.tensor([float(value) for value in values], dtype=torch.float64),
}


class TestFitness:
    @settings(max_examples=60)
    @given(
        values=st.lists(numbers, min_size=P, max_size=P),
        container=st.sampled_from(sorted(CONTAINERS)),
        shaping=st.sampled_from(["centered_ranks", "standardized", "nes"]),
    )
    def test_any_container_counts_as_a_float64_array_of_its_numbers(
        self, values: list[Any], container: str, shaping: str
    ) -> None:
        array = np.array([float(value) for value in values])
        expected = after(array, fitness_shaping=shaping)
        assert expected.isfinite().all()
        assert torch.equal(after(CONTAINERS[container](values), fitness_shaping=shaping), expected)

    @settings(max_examples=60)
    @given(
        values=st.lists(st.integers(0, 100), min_size=P, max_size=P),
        dtype=st.sampled_from(["bool", "int8", "uint64", "float16", "float32", "bfloat16", "int32"]),
    )
    def test_any_dtype_counts_as_its_numbers(self, values: list[int], dtype: str) -> None:
        tensor = torch.tensor(values).to(getattr(torch, dtype))
        expected = after(tensor.double().tolist())
        assert torch.equal(after(tensor), expected)
        assert torch.equal(after(list(tensor)), expected)
        if dtype != "bfloat16":
            assert torch.equal(after(tensor.numpy()), expected)

    junk = st.recursive(
        st.one_of(
            st.none(),
            st.text(max_size=3),
            st.complex_numbers(),
            st.binary(max_size=3),
            st.just(object()),
            numbers,
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=P), st.dictionaries(st.integers(), inner, max_size=3), st.tuples(inner)
        ),
        max_leaves=12,
    )

    @settings(max_examples=150)
    @given(values=st.one_of(junk, st.lists(junk, min_size=P, max_size=P)))
    def test_anything_else_is_refused_in_a_line_and_changes_nothing(self, values: Any) -> None:
        good = isinstance(values, list | tuple) and len(values) == P
        good = good and all(isinstance(each, int | float) for each in values)
        es = strategy()
        before, population = weights(es), es.ask()
        try:
            es.tell(values)
        except (TypeError, ValueError) as error:
            message = str(error)
            assert not good
            assert message.startswith("fitness")
            assert "\n" not in message
            assert torch.equal(weights(es), before)
            assert es.ask() is population
        else:
            assert good

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (None, r"fitness must be \[8\], got None: pass one real number per member"),
            (3.0, r"got 3\.0: pass"),
            ("12345678", "got '12345678': pass"),
            (dict.fromkeys(range(P), 1.0), "got an object of type dict"),
            (set(range(P)), "got an object of type set"),
            (FITNESS + 0j, "got a tensor of torch.complex64"),
            (FITNESS.to_sparse(), r"got a tensor of torch\.float32 \(torch\.sparse_coo"),
            (FITNESS.to("meta"), "torch.strided, meta"),
            (np.array(["1"] * P), r"got a NumPy array of shape \(8,\) and dtype <U1: pass"),
            (np.array([1.0] * 7 + [None]), "and dtype object"),
            (Foreign(np.zeros(P, "datetime64[s]")), r"got a NumPy array of .* datetime64\[s\]"),
            ([1.0] * 7 + ["8"], r"fitness\[7\] must be a real number, got '8'"),
            ([[1.0]] * P, r"fitness\[0\] must be a real number, got a list of 1 value \(1\.0\)"),
            ([torch.ones(1)] * P, r"fitness\[0\] must be a number, got the shape \[1\]"),
            ([10**400] * P, r"fitness\[0\] is too large"),
            (torch.ones(P, 1), r"got \[8, 1\], not one number per member: use \.squeeze\(1\)"),
            (np.ones((1, P)), r"got \[1, 8\], .* use \.squeeze\(0\)"),
            (torch.ones(2, 4), r"got \[2, 4\], .* use \.flatten\(\)"),
            (torch.ones(P, 2, 3), r"got \[8, 2, 3\], .* by \.mean\(\(1, 2\)\)"),
            (torch.tensor(1.0), r"got \[\], not one number per member$"),
            (range(7), r"got \[7\], not one number per member$"),
            (itertools.count(), r"fitness must be \[8\], got more values"),
        ],
        ids=lambda value: None,
    )
    def test_the_message_says_what_came_and_what_to_do(self, values: Any, message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            generation(strategy(), values)

    def test_masked_entries_count_as_failed(self) -> None:
        masked = np.ma.masked_array(FITNESS.numpy(), mask=[m == 5 for m in range(P)])
        failed = [math.nan if m == 5 else value for m, value in enumerate(FITNESS.tolist())]
        assert torch.equal(after(masked), after(failed))

    def test_exact_numbers_are_rounded_once(self) -> None:
        values = [Fraction(m, 3) for m in range(P)]
        assert as_fitness(values, P).tolist() == [m / 3 for m in range(P)]

    def test_what_was_handed_over_is_not_written_to(self) -> None:
        def in_place(fitness: Tensor) -> Tensor:
            return fitness.sub_(fitness.mean())

        for values in (FITNESS.double(), FITNESS.double().numpy()):
            before = values.tolist()
            update = generation(strategy(fitness_shaping=in_place), values)
            assert values.tolist() == before
            assert update.tied_fraction == 0.25

    @pytest.mark.parametrize("convert", [Tensor.tolist, Tensor.numpy, Tensor.float, Tensor.half], ids=str)
    def test_a_shaping_may_return_any_container(self, convert: Callable[[Tensor], Any]) -> None:
        shaped = after(FITNESS, fitness_shaping=lambda fitness: convert(fitness - 4))
        assert torch.equal(shaped, after(FITNESS, fitness_shaping=lambda fitness: fitness - 4))

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (lambda fitness: None, r"the utilities that fitness_shaping returned must be \[8\], got None"),
            (lambda fitness: fitness[:3], r"fitness_shaping returned must be \[8\], got \[3\]"),
            (lambda fitness: fitness / 0, "fitness_shaping returned the utility inf for member 0"),
            (lambda fitness: fitness.where(fitness < 9, math.nan), "the utility nan for member 5"),
        ],
        ids=["none", "short", "inf", "nan"],
    )
    def test_what_a_shaping_returns_is_checked(self, returned: Any, message: str) -> None:
        es = strategy(fitness_shaping=returned)
        before = weights(es)
        with pytest.raises((TypeError, ValueError), match=message):
            generation(es)
        assert torch.equal(weights(es), before)

    @pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e39, 2e307])
    def test_huge_and_tiny_returns_are_standardized_as_any_others(self, scale: float) -> None:
        scaled = [scale * value for value in (FITNESS - 4).tolist()]
        expected = after(FITNESS - 4, fitness_shaping="standardized")
        torch.testing.assert_close(after(scaled, fitness_shaping="standardized"), expected)
        assert SHAPINGS["raw"](torch.tensor(scaled, dtype=torch.float64)).isfinite().all()

    def test_utilities_that_are_too_large_for_the_weights_change_nothing(self) -> None:
        es = strategy(fitness_shaping="raw")
        before, population = weights(es), es.ask()
        with pytest.raises(
            ValueError, match=r"gradient estimate is not finite, .* torch.float32, the utilities"
        ):
            es.tell([1e200 * value for value in FITNESS.tolist()])
        assert torch.equal(weights(es), before)
        assert es.generation == 0
        assert es.ask() is population
        assert all(value.grad is None for value in es.policy.parameters())


SETTINGS = [
    ("population_size", [7, 0, -2, 8.0, True, None, "8"]),
    ("seed", [None, -1, 1.5, "0", True]),
    ("antithetic", [1, "yes", None]),
    ("weight_decay", [-1.0, math.nan, math.inf, "0", 1j, None]),
    ("fitness_shaping", ["ranks", None, 3, ["nes"]]),
    ("elite_fraction", [0.0, -0.5, 1.01, math.nan, True, "1", None]),
    ("perturbation", [None, Flipout, "flipout"]),
    ("sigma", [-0.1, math.nan, math.inf, "0.1", 1j, None, True, torch.ones(2)]),
]


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"), [(name, v) for name, values in SETTINGS for v in values], ids=repr
    )
    def test_a_setting_is_checked_at_first_and_when_changed(self, name: str, value: Any) -> None:
        match = "antithetic population must be even" if value is SETTINGS[0][1][0] else name
        with pytest.raises(ValueError, match=match):
            strategy(**{name: value}).ask()
        es = strategy()
        generation(es)
        before = weights(es)

        def change_and_ask() -> None:
            setattr(es, name, value)
            es.ask()

        with pytest.raises(ValueError, match=match):
            change_and_ask()
        assert torch.equal(weights(es), before)

    @pytest.mark.parametrize(
        ("name", "value", "same"),
        [
            ("population_size", np.int64(P), P),
            ("seed", np.uint8(0), 0),
            ("sigma", torch.tensor(0.5), 0.5),
            ("sigma", np.float32(0.5), 0.5),
            ("sigma", Fraction(1, 2), 0.5),
            ("antithetic", np.True_, True),
            ("elite_fraction", Fraction(1, 2), 0.5),
            ("fitness_shaping", "nes", SHAPINGS["nes"]),
        ],
        ids=lambda each: getattr(each, "__name__", repr(each)),
    )
    def test_the_same_value_of_another_type_is_the_same(self, name: str, value: Any, same: Any) -> None:
        changed = strategy()
        setattr(changed, name, value)
        generation(changed)
        expected = after(FITNESS, **{name: same})
        assert torch.equal(weights(changed), expected)
        assert torch.equal(after(FITNESS, **{name: value}), expected)

    def test_a_setting_changed_after_ask_is_checked_by_tell(self) -> None:
        es = strategy()
        es.ask()
        es.weight_decay = -1.0
        with pytest.raises(ValueError, match="weight_decay must be >= 0, got -1"):
            es.tell(FITNESS)
        es.weight_decay = 0.0
        es.population_size, es.antithetic = 5, False  # of the next generation
        es.tell(FITNESS)
        assert es.ask().size == 5

    @pytest.mark.parametrize("perturbation", [Flipout(), LowRank(), Independent()], ids=str)
    def test_sigma_may_end_at_zero(self, perturbation: Perturbation) -> None:
        es = strategy(perturbation=perturbation, optimizer=None)
        generation(es)
        es.sigma = 0.0
        population, x = es.ask(), torch.ones(P, 4)
        torch.testing.assert_close(population(x), es.policy(x).detach())
        assert torch.equal(population.member(3)["0.weight"], es.policy[0].weight)
        update = es.tell(FITNESS, signal_to_noise=True)
        assert update.gradient_norm == 0
        assert weights(es).isfinite().all()

    def test_sigma_must_not_begin_there(self) -> None:
        with pytest.raises(ValueError, match="sigma must be > 0, got 0"):
            strategy(sigma=0)

    @pytest.mark.parametrize(
        ("optimizer", "message"),
        [
            (torch.optim.Adam, "must be a torch.optim.Optimizer over policy.parameters"),
            (0.01, r"got 0\.01"),
            (torch.optim.LBFGS(network().parameters()), "LBFGS needs a closure"),
        ],
        ids=["class", "number", "closure"],
    )
    def test_an_optimizer_that_cannot_be_used_is_refused(self, optimizer: Any, message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            strategy(optimizer=optimizer)

    def test_a_function_is_no_policy(self) -> None:
        with pytest.raises(TypeError, match="the policy must be a"):
            FlipoutES(lambda x: x, population_size=P, sigma=0.1)  # type: ignore[arg-type]


class TestUpdates:
    @pytest.mark.parametrize(
        "name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "ClipUp", "SGD"]
    )
    @pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
    def test_float16_weights_stay_finite_and_steps_small(self, name: str, scale: float) -> None:
        policy = network().half()
        es = strategy(
            policy, optimizer=make_optimizer(name, policy, lr=0.01), fitness_shaping=lambda f: scale * f
        )
        before = weights(es)
        generation(es, FITNESS - FITNESS.mean())
        assert weights(es).isfinite().all()
        assert (weights(es) - before).abs().max() < 0.2

    def test_the_default_eps_is_kept_elsewhere(self) -> None:
        assert make_optimizer("Adam", network(), lr=0.1).defaults["eps"] == 1e-8
        assert make_optimizer("Adam", network().half(), lr=0.1).defaults["eps"] == FLOAT16_EPS
        assert make_optimizer("Adam", network().half(), lr=0.1, kwargs={"eps": 1e-3}).defaults["eps"] == 1e-3

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda policy: torch.optim.Adam(policy.half().parameters()),
                r"'0\.weight' not finite, .* eps of 0\.01",
            ),
            (lambda policy: torch.optim.SGD(policy.parameters(), lr=1e38), "lower its learning rate"),
        ],
        ids=["float16", "rate"],
    )
    def test_a_step_that_is_not_finite_is_taken_back(self, make: Any, message: str) -> None:
        policy = network()
        es = strategy(policy, optimizer=make(policy), fitness_shaping=lambda fitness: 1e4 * fitness)
        before, population = weights(es), es.ask()
        fitness = torch.zeros(P) if "eps" in message else FITNESS
        with pytest.raises(ValueError, match=message):
            es.tell(fitness)
        assert torch.equal(weights(es), before)
        assert es.ask() is population
        assert all(value.grad is None for value in policy.parameters())

    @pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop", "ASGD", "Rprop", "ClipUp"])
    def test_after_a_step_that_fails_all_goes_on_as_if_it_had_not_been(self, name: str) -> None:
        """The step moves the weights, the moments, the count and a setting of the group, and then fails."""
        strategies = [
            strategy(policy := network(), optimizer=make_optimizer(name, policy, lr=0.01)) for _ in "12"
        ]
        for es in strategies:
            generation(es)
        failing, step = strategies[1], strategies[1].optimizer.step

        def fails() -> None:
            step()
            failing.optimizer.param_groups[0]["lr"] = 5.0
            raise OSError("disk")

        failing.optimizer.step = fails  # type: ignore[method-assign, assignment]
        for _ in range(2):
            with pytest.raises(OSError, match="disk"):
                generation(failing)
        failing.optimizer.step = step  # type: ignore[method-assign]
        assert failing.generation == 1
        for es in strategies:
            generation(es, -FITNESS)
            generation(es)
        assert torch.equal(weights(strategies[0]), weights(failing))

    def test_weights_that_were_spoilt_in_between_are_named(self) -> None:
        es = strategy()
        es.ask()
        es.policy[2].bias.data.fill_(math.nan)
        with pytest.raises(ValueError, match=r"'2\.bias' is not finite, and was not before"):
            es.tell(FITNESS)

    @pytest.mark.parametrize("post", [False, True])
    def test_hooks_of_a_parameter_see_and_change_its_gradient(self, post: bool) -> None:
        results = []
        for masks in (False, True):
            policy = network()
            es = strategy(policy, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1))
            weight = policy[0].weight
            if masks and post:
                weight.register_post_accumulate_grad_hook(
                    lambda parameter: setattr(parameter, "grad", parameter.grad * ROWS)
                )
            elif masks:
                weight.register_hook(lambda gradient: gradient * ROWS)
            before = weight.detach().clone()
            generation(es)
            results.append((weight.detach() - before, policy[2].weight.detach()))
        torch.testing.assert_close(results[1][0], ROWS * results[0][0])
        assert torch.equal(results[1][1], results[0][1])

    def test_a_hook_that_changes_nothing_changes_no_bit(self) -> None:
        es = strategy()
        for value in es.policy.parameters():
            value.register_hook(lambda gradient: None)
        generation(es)
        assert torch.equal(weights(es), after(FITNESS))


class TestChangedPolicies:
    def test_a_layer_that_is_unfrozen_is_trained_as_by_a_fresh_optimizer(self) -> None:
        policy = network()
        policy[0].requires_grad_(False)
        es = strategy(policy)
        for _ in range(2):
            generation(es)
        head = es.optimizer.state[policy[2].weight]["step"].clone()
        policy[0].requires_grad_(True)
        before = policy[0].weight.detach().clone()
        assert es.ask().trained == ["0.weight", "0.bias", "2.weight", "2.bias"]
        es.tell(FITNESS)
        # Adam's first step is the learning rate in each entry, whatever the gradient, unless that is tiny.
        step = (policy[0].weight.detach() - before).abs()
        assert step.min() > 0.005
        assert float(step.max()) == pytest.approx(0.01, rel=1e-3)
        assert es.optimizer.state[policy[2].weight]["step"] == head + 1

    def test_a_layer_that_is_put_in_is_trained_and_the_old_one_forgotten(self) -> None:
        es = strategy()
        generation(es)
        old, es.policy[2] = es.policy[2], nn.Linear(3, 5)
        before = es.policy[2].weight.detach().clone()
        update = generation(es)
        assert (es.policy[2].weight != before).all()
        assert math.isnan(update.update_cosine)
        assert old.weight not in es.optimizer.state
        fresh = strategy(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)))
        fresh.load_state_dict(es.state_dict())
        generation(es)
        generation(fresh)
        assert torch.equal(weights(fresh), weights(es))

    def test_a_schedule_of_the_learning_rate_goes_on(self) -> None:
        es = strategy()
        schedule = torch.optim.lr_scheduler.ExponentialLR(es.optimizer, 0.5)
        es.policy[2] = nn.Linear(3, 5)
        generation(es)
        schedule.step()
        before = es.policy[2].bias.detach().clone()
        generation(es)
        assert float((es.policy[2].bias.detach() - before).abs().max()) < 0.0075

    def test_an_optimizer_of_ones_own_has_to_have_it(self) -> None:
        policy = network()
        policy[0].requires_grad_(False)
        optimizer = torch.optim.Adam(policy[2].parameters(), lr=0.1)
        es = strategy(policy, optimizer=optimizer)
        generation(es)
        policy[0].requires_grad_(True)
        with pytest.raises(ValueError, match=r"'0\.weight', .*optimizer\.add_param_group"):
            es.ask()
        optimizer.add_param_group({"params": policy[0].parameters()})
        before = policy[0].weight.detach().clone()
        generation(es)
        assert (policy[0].weight != before).all()

    def test_a_policy_frozen_as_a_whole_has_nothing_to_train(self) -> None:
        es = strategy()
        generation(es)
        es.policy.requires_grad_(False)
        with pytest.raises(
            ValueError, match="no parameter that requires a gradient: there is nothing to train"
        ):
            es.ask()

    def test_a_parameter_that_became_something_else_is_refused(self) -> None:
        es = strategy()
        generation(es)
        es.policy[0].weight = nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))
        with pytest.raises(ValueError, match=r"the parameter '0\.weight' is complex"):
            es.ask()

    @pytest.mark.parametrize(
        "change",
        [
            lambda policy: policy[0].requires_grad_(False),
            lambda policy: policy.__setitem__(0, nn.Linear(4, 3)),
            lambda policy: policy.append(nn.Linear(2, 2)),
        ],
        ids=["frozen", "replaced", "added"],
    )
    def test_a_population_of_another_policy_is_refused_and_asking_again_helps(self, change: Any) -> None:
        es = strategy()
        es.ask()
        change(es.policy)
        before = weights(es)
        for refused in (es.ask_more, lambda: es.tell(FITNESS)):
            with pytest.raises(ValueError, match=r"frozen, unfrozen or replaced after .* call ask again"):
                refused()
        assert torch.equal(weights(es), before)
        population = es.ask()
        assert population(torch.ones(P, 4)).shape == (P, 2)
        assert es.tell(FITNESS).update_norm > 0

    def test_values_may_change_in_place(self) -> None:
        es = strategy()
        es.ask()
        es.policy.load_state_dict(network(seed=1).state_dict())
        other = strategy(network(seed=1))
        generation(other)
        es.tell(FITNESS)
        assert torch.equal(weights(es), weights(other))

    def test_a_policy_may_be_converted_between_generations(self) -> None:
        es, other = strategy(), strategy(network().double())
        generation(es)
        es.policy.double()
        other.load_state_dict(es.state_dict())
        generation(es)
        generation(other)
        assert weights(es).dtype == torch.float64
        assert torch.equal(weights(es), weights(other))

    def test_an_optimizer_of_another_policy_is_refused_at_any_time(self) -> None:
        es = strategy()
        es.ask()
        es.optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"the optimizer does not have the parameter '0\.weight'"):
            es.tell(FITNESS)

    def test_a_shaping_that_changes_what_it_is_given_spoils_no_figure(self) -> None:
        es = strategy(fitness_shaping=lambda fitness: fitness.zero_())
        assert generation(es).tied_fraction == 0.25


def through_torch(es: FlipoutES) -> FlipoutES:
    file = io.BytesIO()
    torch.save(es, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class TestCopies:
    @pytest.mark.parametrize(
        "twin_of",
        [copy.deepcopy, lambda es: pickle.loads(pickle.dumps(es)), through_torch],
        ids=["copy", "pickle", "torch"],
    )
    @pytest.mark.parametrize("perturbation", [Flipout(), Flipout(2), LowRank(), Independent()], ids=str)
    def test_a_copy_goes_on_alone_to_the_same_weights(self, twin_of: Any, perturbation: Perturbation) -> None:
        def played(es: FlipoutES) -> Tensor:
            return es.ask()(torch.ones(P, 4)).sum(1)

        es = strategy(perturbation=perturbation)
        es.tell(played(es))
        played(es)  # a population that has run
        twin = twin_of(es)
        start = weights(twin)
        for _ in range(3):
            es.tell(played(es))
        assert torch.equal(weights(twin), start)
        for _ in range(3):
            twin.tell(played(twin))
        assert torch.equal(weights(twin), weights(es))
        twin.policy[2] = nn.Linear(3, 2)  # its optimizer is its own, too
        generation(twin)
        assert len(es.optimizer.state) == 4

    def test_an_optimizer_of_ones_own_is_copied_with_the_policy(self) -> None:
        policy = network()
        es = strategy(policy, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1, momentum=0.9))
        generation(es)
        twin = copy.deepcopy(es)
        generation(es)
        generation(twin)
        assert torch.equal(weights(twin), weights(es))


class TestState:
    def test_it_is_a_snapshot(self) -> None:
        es = strategy()
        generation(es)
        state = es.state_dict()
        kept = copy.deepcopy(state)
        generation(es)
        es.policy[0].weight.data.zero_()
        for one, other in zip(tensors(state), tensors(kept), strict=True):
            assert torch.equal(one, other)
        assert state["policy"]._metadata == kept["policy"]._metadata

    def test_what_was_loaded_is_not_written_to(self) -> None:
        es, other = strategy(), strategy()
        generation(es)
        state = es.state_dict()
        kept = copy.deepcopy(state)
        other.load_state_dict(state)
        generation(other)
        assert all(torch.equal(one, two) for one, two in zip(tensors(state), tensors(kept), strict=True))

    @pytest.mark.parametrize("name", ["policy", "optimizer", "generation", "sigma", "last_update"])
    def test_a_state_that_lacks_something_is_refused(self, name: str) -> None:
        es = strategy()
        state = {key: value for key, value in es.state_dict().items() if key != name}
        with pytest.raises(ValueError, match=f"the state lacks '{name}': it needs policy, optimizer"):
            es.load_state_dict(state)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda state: state["policy"].update({"2.bias": torch.zeros(3), "0.bias": torch.zeros(3)}),
            lambda state: state["policy"].pop("2.bias"),
            lambda state: state["policy"].update(more=torch.zeros(1)),
            lambda state: state["optimizer"]["param_groups"][0].update(params=[0]),
            lambda state: state.update(sigma=-1.0),
            lambda state: state.update(generation="3"),
            lambda state: state.update(last_update={"nobody": torch.zeros(1)}),
            lambda state: state.update(policy=None),
        ],
        ids=["shape", "missing", "unexpected", "optimizer", "sigma", "generation", "update", "none"],
    )
    def test_a_state_that_does_not_fit_changes_nothing(self, spoil: Callable[[dict[str, Any]], Any]) -> None:
        es, other = strategy(), strategy(network(seed=1))
        generation(es)
        generation(other)
        state = other.state_dict()
        state["policy"] = copy.deepcopy(state["policy"])
        spoil(state)
        twin, population = copy.deepcopy(es), es.ask()
        with pytest.raises((ValueError, RuntimeError, AttributeError, TypeError)):
            es.load_state_dict(state)
        assert es.ask() is population
        generation(es)
        generation(twin)
        assert torch.equal(weights(es), weights(twin))

    def test_something_else_is_no_state(self) -> None:
        with pytest.raises(ValueError, match="must be what state_dict returned, got None"):
            strategy().load_state_dict(None)  # type: ignore[arg-type]

    def test_a_state_of_earlier_versions_has_no_frozen_parameters(self) -> None:
        def frozen() -> FlipoutES:
            policy = network()
            policy[0].requires_grad_(False)
            return strategy(policy)

        es, resumed = frozen(), frozen()
        generation(es)
        state = es.state_dict()
        # The optimizer of version 0.1 had only "2.weight" and "2.bias", as its parameters 0 and 1.
        moments = state["optimizer"]["state"]
        state["optimizer"] = {
            "state": {0: moments[2], 1: moments[3]},
            "param_groups": [{**state["optimizer"]["param_groups"][0], "params": [0, 1]}],
        }
        resumed.load_state_dict(state)
        for each in (es, resumed):
            generation(each)
            each.policy[0].requires_grad_(True)
            generation(each)
        assert torch.equal(weights(resumed), weights(es))

    def test_the_state_of_another_optimizer_is_refused(self) -> None:
        policy = network()
        state = strategy(policy, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1)).state_dict()
        es = strategy(network(1))
        before = weights(es)
        with pytest.raises(ValueError, match="saved with a different optimizer: it has no 'betas'"):
            es.load_state_dict(state)
        assert torch.equal(weights(es), before)
        generation(es)

    def test_a_resumed_strategy_may_have_been_unfrozen_in_between(self) -> None:
        policy = network()
        policy[0].requires_grad_(False)
        es = strategy(policy)
        generation(es)
        policy[0].requires_grad_(True)
        generation(es)
        resumed = strategy(network(seed=1))
        resumed.load_state_dict(es.state_dict())
        for each in (es, resumed):
            generation(each)
        assert torch.equal(weights(resumed), weights(es))


def tensors(state: Any) -> Iterator[Tensor]:
    """Yields the tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        yield from tensors(state.values())
    elif isinstance(state, Iterable) and not isinstance(state, str):
        for value in state:
            yield from tensors(value)
