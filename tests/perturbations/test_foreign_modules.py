"""Modules that a user may bring: random ones, in any dtype, and what they return, hold and cannot do.

The oracle is the loop over `population.module(m)`: a module runs as it does there, or is refused in one line.
"""

import copy
import dataclasses
import pickle
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves

from es_flipout.fitness import centered_ranks
from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation, UnsupportedOperationError
from es_flipout.population import Population
from es_flipout.strategy import FlipoutES

P, WIDTH = 6, 4
FAMILIES = [Flipout(), Flipout(3, "gaussian"), LowRank(2), Independent()]
every_family = pytest.mark.parametrize("perturbation", FAMILIES, ids=str)
either_way = pytest.mark.parametrize("row_wise", [False, True])
Pair = namedtuple("Pair", "first second")


def populate(policy: nn.Module, perturbation: Perturbation = Flipout()) -> Population:  # noqa: B008 - frozen
    return FlipoutES(policy, population_size=P, sigma=0.25, perturbation=perturbation).ask()


def randn(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2))


def one_by_one(population: Population, x: Tensor) -> list[Any]:
    """Returns what each member's own module returns."""
    with torch.no_grad():
        return [population.module(m)(row) for m, row in enumerate(x)]


class Function(nn.Module):
    """Any function of a layer's output."""

    def __init__(self, function: Callable[[Tensor], Any], row_wise: bool = False) -> None:
        super().__init__()
        self.layer, self.function, self.row_wise = nn.Linear(WIDTH, 2), function, row_wise

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


class Tree(nn.Module):
    """Branches of layers, whose outputs come in a container."""

    def __init__(self, branches: list[nn.Module], container: str) -> None:
        super().__init__()
        self.branches, self.container = nn.ModuleList(branches), container

    def forward(self, x: Tensor) -> Any:
        outputs = [branch(x) for branch in self.branches]
        if self.container == "dict":
            return {"outputs": outputs, "size": len(outputs), "nothing": None}
        if self.container == "pair":
            return Pair(outputs[0], tuple(outputs[1:]))
        return outputs if self.container == "list" else sum(outputs)


class Lookup(nn.Module):
    """An embedding of how many features are positive."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(WIDTH + 1, WIDTH, padding_idx=padding_idx)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x > 0).sum(-1))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (1, WIDTH)), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(-2), nn.Linear(8, WIDTH)
    )


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    """Draws a tree of layers with shared and frozen weights."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    tied = nn.Linear(WIDTH, WIDTH)
    layer = st.sampled_from(
        [
            lambda: tied,
            lambda: nn.Linear(WIDTH, WIDTH, bias=False),
            lambda: nn.LayerNorm(WIDTH),
            lambda: nn.Sequential(nn.GELU(), nn.PReLU()),
            nn.Tanh,
            convolution,
            lambda: Lookup(None),
            lambda: Lookup(2),
            lambda: nn.GRUCell(WIDTH, WIDTH),
            lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),  # no rule under Flipout
        ]
    )
    branches = [
        nn.Sequential(*(make() for make in draw(st.lists(layer, min_size=1, max_size=3))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    module = Tree([*branches, tied], draw(st.sampled_from(["dict", "pair", "list", "sum"])))
    for parameter in module.parameters():
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
    tied.weight.requires_grad_(True)
    return module


TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, about weight_norm
@settings(max_examples=60)
@given(
    module=modules(),
    perturbation=st.sampled_from(FAMILIES),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 99),
)
def test_a_random_module_runs_as_its_members_do_or_is_refused_in_a_line(
    module: nn.Module, perturbation: Perturbation, dtype: torch.dtype, seed: int
) -> None:
    population = populate(module.to(dtype), perturbation)
    x = torch.randn(P, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)
    try:
        rows = population(x)
    except UnsupportedOperationError as error:
        refusal = str(error)
        assert "weight_norm" in refusal
        assert "\n" not in refusal
        return
    alone = [tree_leaves(outputs) for outputs in one_by_one(population, x)]
    for leaf, expected in zip(tree_leaves(rows), zip(*alone, strict=True), strict=True):
        if isinstance(leaf, Tensor):
            assert leaf.dtype == dtype
            tolerance = TOLERANCES[dtype]
            torch.testing.assert_close(leaf, torch.stack(expected), rtol=tolerance, atol=tolerance)
        else:
            assert {leaf} == set(expected)


@every_family
@pytest.mark.parametrize("dtypes", [(torch.float16,) * 2, (torch.bfloat16, torch.float64)], ids=str)
def test_the_gradient_in_any_dtype_is_that_of_the_dense_noise(
    perturbation: Perturbation, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    policy = nn.Sequential(nn.Linear(5, 3).to(dtypes[0]), nn.Linear(3, 2).to(dtypes[1]))
    population = populate(policy, perturbation)
    utilities = centered_ranks(torch.arange(float(P)))
    for name, gradient in population.gradient(utilities).items():
        noise = [population.noise.member(m)[name] for m in range(P)]
        expected = sum(u * eps.double() for u, eps in zip(utilities.tolist(), noise, strict=True)) / (
            P * 0.25
        )
        assert gradient.dtype == policy.get_parameter(name).dtype
        torch.testing.assert_close(gradient.double(), expected, rtol=0.02, atol=0.02)


class TestOutputs:
    @either_way
    def test_containers_of_tensors_and_constants_come_back(self, row_wise: bool) -> None:
        def outputs(y: Tensor) -> Any:
            return OrderedDict(
                pair=Pair(y, [y > 0, None]), best=y.max(-1), note=("text", 3, True, y.shape[-1])
            )

        population, x = populate(Function(outputs, row_wise)), randn(P, WIDTH)
        rows, alone = population(x), one_by_one(population, x)
        assert type(rows) is OrderedDict
        assert rows["note"] == alone[0]["note"]
        for leaf, expected in zip(
            tree_leaves(rows)[:2], zip(*map(tree_leaves, alone), strict=True), strict=False
        ):
            torch.testing.assert_close(leaf, torch.stack(expected))
        assert torch.equal(rows["best"].indices, torch.stack([each["best"].indices for each in alone]))

    def test_outputs_need_not_depend_on_the_inputs(self) -> None:
        assert populate(Function(lambda y: torch.ones(3)))(randn(P, WIDTH)).tolist() == [[1.0] * 3] * P
        assert populate(Function(lambda y: y.sum()))(randn(P, WIDTH)).shape == (P,)
        assert populate(Function(lambda y: None))(randn(P, WIDTH)) is None

    @either_way
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda y: dataclasses.make_dataclass("Action", ["mean"])(y),
            lambda y: torch.distributions.Normal(y, 1.0),
            lambda y: {"a": [np.ones(P)]},
            lambda y: {y},
            lambda y: iter([y]),
            lambda y: type("Actions", (list,), {})([y]),
        ],
        ids=["dataclass", "distribution", "array", "set", "iterator", "list-subclass"],
    )
    def test_anything_else_is_refused(self, wrap: Callable[[Tensor], Any], row_wise: bool) -> None:
        name = type(wrap(torch.zeros(2))).__qualname__.replace("dict", "ndarray")
        with pytest.raises(TypeError, match=f"returned an object of type {name}: return tensors, or"):
            populate(Function(wrap, row_wise))(randn(P, WIDTH))

    @pytest.mark.parametrize("function", [lambda y: y.sum(), lambda y: torch.ones(3), lambda y: {"a": y[:2]}])
    def test_a_row_wise_policy_must_return_one_row_per_member(
        self, function: Callable[[Tensor], Any]
    ) -> None:
        population = populate(Function(function, row_wise=True))
        with pytest.raises(
            (ValueError, UnsupportedOperationError), match="6 rows, one per member: got shape"
        ):
            population(randn(P, WIDTH))

    @pytest.mark.parametrize(
        "function", [lambda y: y.sum(), lambda y: y.squeeze(0), lambda y: torch.cat([y, y])]
    )
    def test_a_batch_of_one_must_stay_one(self, function: Callable[[Tensor], Any]) -> None:
        with pytest.raises(ValueError, match="given a batch of one and returned shape"):
            populate(Function(function)).select(torch.arange(P))(randn(P, WIDTH))


class TestMessages:
    @pytest.mark.parametrize(
        "module",
        [
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1), nn.Linear(144, 2)),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(),
        ],
        ids=["flatten", "group-norm", "batch-norm"],
    )
    def test_a_module_for_batches_is_told_what_it_was_given(self, module: nn.Module) -> None:
        population, x = populate(module), randn(P, 3, 8, 8)
        with pytest.raises(
            (RuntimeError, ValueError), match=r"float32 \[3, 8, 8\], without a batch .* x\.unsqueeze\(1\)"
        ):
            population(x)
        torch.testing.assert_close(
            population(x.unsqueeze(1)), torch.stack(one_by_one(population, x.unsqueeze(1)))
        )

    def test_a_batch_of_one_is_not_blamed(self) -> None:
        rows = populate(Function(lambda y: y @ torch.ones(5))).select(torch.arange(P))
        with pytest.raises(RuntimeError, match="size mismatch") as caught:
            rows(randn(P, WIDTH))
        assert "batch" not in str(caught.value)

    def test_an_error_without_text_gets_a_note(self) -> None:
        def fails(y: Tensor) -> Any:
            raise KeyError(3)

        with pytest.raises(KeyError) as caught:
            populate(Function(fails))(randn(P, WIDTH))
        assert "its own row" in caught.value.__notes__[0]

    @pytest.mark.parametrize("function", [lambda y: y.sum().item(), lambda y: y if y.sum() > 0 else -y])
    def test_reading_values_is_explained(self, function: Callable[[Tensor], Any]) -> None:
        with pytest.raises(RuntimeError, match=r"^rows run all at once, .* torch\.where"):
            populate(Function(function))(randn(P, WIDTH))

    @pytest.mark.parametrize("spectral_norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
    def test_a_layer_that_changes_its_buffers_is_to_be_in_eval_mode(self, spectral_norm: Any) -> None:
        module = spectral_norm(nn.Linear(WIDTH, 2))
        with pytest.raises(RuntimeError, match=r"^a forward must not change .* eval\(\)"):
            populate(module)(randn(P, 1, WIDTH))
        module.eval()
        population, x = populate(module, Independent()), randn(P, 1, WIDTH)
        torch.testing.assert_close(
            population(x), torch.stack(one_by_one(population, x)), rtol=1e-4, atol=1e-4
        )

    def test_the_remedy_is_not_what_one_already_does(self) -> None:
        gru = nn.GRU(3, 2, batch_first=True)

        class Packed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = gru

            def forward(self, x: Tensor) -> Any:
                return self.gru(nn.utils.rnn.pack_sequence([torch.zeros(2, 3)]))[1]

        for perturbation, advice in ((Flipout(), True), (Independent(), False)):
            with pytest.raises(UnsupportedOperationError) as caught:
                populate(Packed(), perturbation)(randn(P, 3))
            assert ("perturbation Independent" in str(caught.value)) == advice

    def test_max_norm_names_its_remedy(self) -> None:
        for perturbation in FAMILIES:
            with pytest.raises(
                UnsupportedOperationError, match=r"'embedding' with max_norm .* set max_norm=None"
            ):
                populate(nn.Embedding(3, 4, max_norm=1.0), perturbation)(torch.zeros(P, 1, dtype=torch.int64))

    @pytest.mark.parametrize("members", [torch.tensor([0.7, 1.0]), torch.tensor([True, False])])
    def test_members_are_integers(self, members: Tensor) -> None:
        with pytest.raises(TypeError, match="members must be the indices of members"):
            populate(nn.Linear(4, 2))(randn(2, 4), members=members)


class Cached(nn.Module):
    """Remembers its last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2)
        self.features = {"last": self.layer(randn(WIDTH))}

    def forward(self, x: Tensor) -> Tensor:
        self.features = {"last": torch.tanh(self.layer(x))}
        return 2 * self.features["last"]


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(WIDTH, 2), "weight", 0.5)


def normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(WIDTH, 2))


class TestCopies:
    @pytest.mark.parametrize("make", [Cached, pruned], ids=["cached", "pruned"])
    @every_family
    def test_a_module_that_holds_a_computed_tensor_runs(
        self, make: Callable[[], nn.Module], perturbation: Perturbation
    ) -> None:
        policy = make()
        population, x = populate(policy, perturbation), randn(P, WIDTH)
        torch.testing.assert_close(population(x), torch.stack(one_by_one(population, x)))
        twin = copy.deepcopy(population)
        assert torch.equal(twin(x), population(x))

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's
    def test_old_weight_norm_runs_where_it_has_a_rule(self) -> None:
        population, x = populate(normed(), Independent()), randn(P, WIDTH)
        torch.testing.assert_close(population(x), torch.stack(one_by_one(population, x)))

    @pytest.mark.parametrize(
        "held",
        [threading.Lock(), (x for x in "ab"), {"a": [threading.Lock()]}, memoryview(b"a")],
        ids=["lock", "generator", "nested", "memory"],
    )
    def test_what_cannot_be_copied_is_named(self, held: object) -> None:
        policy = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh())
        policy[1].thing, policy.me = held, [policy]
        population = populate(policy)
        for run in (lambda: population(randn(P, WIDTH)), lambda: population.module(0)):
            with pytest.raises(
                TypeError, match=r"keep '1\.thing' out of the module Tanh .* cannot be copied"
            ) as caught:
                run()
            assert "\n" not in str(caught.value)

    def test_what_deepcopy_shares_is_no_problem(self) -> None:
        policy = Function(lambda y: 2 * y)
        policy.device, policy.kind = torch.device("cpu"), Function
        assert populate(policy)(randn(P, WIDTH)).shape == (P, 2)

    @every_family
    @pytest.mark.parametrize("ran", [False, True])
    @pytest.mark.parametrize(
        "twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
    )
    def test_a_copy_of_a_population_or_selection_is_another_one(
        self, perturbation: Perturbation, ran: bool, twin_of: Callable[[Any], Any]
    ) -> None:
        policy = nn.Sequential(nn.Embedding(4, WIDTH, padding_idx=1), nn.Linear(WIDTH, 2))
        population, x = populate(policy, perturbation), torch.tensor([0, 1, 2, 3, 1, 0])
        rows = population.select(torch.tensor([5, 0, 0, 2, 3, 1]))
        rows.assign(torch.tensor([1]), torch.tensor([4]))
        if ran:
            population(x), rows.each(x)
        expected, by_rows = population(x), rows.each(x)
        other_population, other_rows = twin_of(population), twin_of(rows)
        utilities = torch.linspace(-1, 1, P)
        for name, value in population.gradient(utilities).items():
            assert torch.equal(other_population.gradient(utilities)[name], value)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.fill_(3.0)
        rows.assign(torch.tensor([0]), torch.tensor([2]))
        assert torch.equal(other_population(x), expected)
        assert torch.equal(other_rows.each(x), by_rows)
        other_rows.assign(torch.tensor([2]), torch.tensor([1]))  # it can go on
        again = other_population.select(torch.tensor([5, 4, 1, 2, 3, 1]))
        assert torch.equal(other_rows.each(x), again.each(x))

    def test_a_policy_and_its_selection_stay_together_in_a_copy(self) -> None:
        population, x = populate(nn.Linear(WIDTH, 2)), randn(P, WIDTH)
        other, rows = copy.deepcopy((population, population.select(torch.arange(P))))
        with torch.no_grad():
            other.policy.weight.zero_()
        assert torch.equal(rows.each(x), other(x))


class TestChanges:
    """A population runs the policy as it is, whatever was done to it since the last forward."""

    def changes(self) -> Iterator[Callable[[Function], Any]]:
        yield lambda policy: setattr(policy, "function", torch.tanh)
        yield lambda policy: setattr(policy.layer.weight, "data", policy.layer.weight.data * 2)
        yield lambda policy: policy.layer.bias.data.add_(1)
        yield lambda policy: policy.layer.register_forward_hook(lambda module, inputs, output: output + 1)
        yield lambda policy: policy.register_buffer("more", torch.ones(1))

    def test_it_is_seen(self) -> None:
        for change in self.changes():
            policy = Function(lambda y: y)
            population, x = populate(policy), randn(P, WIDTH)
            population(x)
            change(policy)
            torch.testing.assert_close(population(x), torch.stack(one_by_one(population, x)))


class TestPadding:
    @pytest.mark.parametrize("antithetic", [True, False])
    @every_family
    def test_the_padding_entry_has_no_noise(self, perturbation: Perturbation, antithetic: bool) -> None:
        policy = nn.Sequential(nn.Embedding(4, 3, padding_idx=-2), nn.Linear(3, 3))  # entry 2
        es = FlipoutES(policy, population_size=P, sigma=0.2, perturbation=perturbation, antithetic=antithetic)
        population, indices = es.ask(), torch.tensor([0, 1, 2, 3]).expand(P, 4)
        for m in range(P):
            moved = (population.member(m)["0.weight"] != policy[0].weight).any(1)
            assert moved.tolist() == [True, True, False, True]
        torch.testing.assert_close(population(indices), torch.stack(one_by_one(population, indices)))
        gradient = population.gradient(torch.linspace(-1, 2, P))["0.weight"]
        assert (gradient != 0).any(1).tolist() == [True, True, False, True]

    @every_family
    @pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
    def test_it_does_not_move_even_with_weight_decay(
        self, perturbation: Perturbation, make: type[nn.Module]
    ) -> None:
        policy = make(5, 3, padding_idx=4)
        with torch.no_grad():
            policy.weight.fill_(1.0)
        es = FlipoutES(policy, population_size=P, sigma=0.2, perturbation=perturbation, weight_decay=0.1)
        for _ in range(3):
            es.ask()
            es.tell(torch.arange(float(P)))
        assert (policy.weight == 1.0).all(1).tolist() == [False, False, False, False, True]

    def test_an_embedding_without_one_has_the_noise_that_it_had(self) -> None:
        noises = [
            populate(nn.Embedding(4, 3, padding_idx=index), Independent()).noise.member(1)["weight"]
            for index in (None, 2)
        ]
        assert torch.equal(noises[0][[0, 1, 3]], noises[1][[0, 1, 3]])


class TestTrainedParameters:
    @pytest.mark.parametrize(
        ("parameter", "message"),
        [
            (nn.Parameter(torch.ones(2, dtype=torch.complex64)), "is complex .*view_as_real"),
            (
                nn.Parameter(torch.ones(2).to(torch.float8_e5m2)),
                "has the dtype torch.float8_e5m2: convert it to",
            ),
            (nn.Parameter(torch.ones(2, device="meta")), "is on the meta device, .* policy.to_empty"),
            (nn.Parameter(torch.eye(2).to_sparse()), "is not an ordinary dense tensor"),
            (nn.parameter.UninitializedParameter(), "has no shape yet: run the policy once"),
            (nn.Parameter(torch.ones(1).expand(2)), r"is expanded, .* \.clone\(\)"),
            (nn.Parameter(torch.tensor([1.0, torch.nan])), "is not finite"),
        ],
        ids=["complex", "float8", "meta", "sparse", "lazy", "expanded", "nan"],
    )
    def test_what_cannot_be_trained_is_refused_by_name(self, parameter: nn.Parameter, message: str) -> None:
        policy = Function(lambda y: y)
        policy.gain = parameter
        with pytest.raises(ValueError, match=f"the parameter 'gain' {message}") as caught:
            populate(policy)
        assert "\n" not in str(caught.value)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            return  # torch does not let it be frozen
        parameter.requires_grad_(False)  # shared by members, it may be anything
        assert list(trained_parameters(policy)) == ["layer.weight", "layer.bias"]
        FlipoutES(policy, population_size=P, sigma=0.1).ask()

    @every_family
    def test_parameters_without_entries_are_no_problem(self, perturbation: Perturbation) -> None:
        policy = nn.Sequential(nn.Linear(WIDTH, 2))
        policy.register_parameter("vector", nn.Parameter(torch.zeros(0)))
        policy.register_parameter("matrix", nn.Parameter(torch.zeros(0, 3)))
        es, x = FlipoutES(policy, population_size=P, sigma=0.1, perturbation=perturbation), randn(P, WIDTH)
        torch.testing.assert_close(es.ask()(x), torch.stack(one_by_one(es.ask(), x)))
        assert es.tell(torch.arange(float(P))).update_norm > 0
