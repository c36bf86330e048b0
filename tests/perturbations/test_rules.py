"""Which operations run perturbed and which do not: errors with their remedies, and user-defined rules."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import (
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    PerturbedParameter,
    UnsupportedOperationError,
    rule,
)
from es_flipout.perturbations.registry import RULES
from es_flipout.population import Population

P = 6
MEMBERS = torch.tensor([3, 0, 5, 3])


class Module(nn.Module):
    """Any function of the input and of named parameters, as a module."""

    def __init__(self, function: Callable[..., Any], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        for name, size in sizes.items():
            value = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, inputs: Tensor) -> Any:
        return self.function(inputs, **dict(self._parameters))


def populate(policy: nn.Module, perturbation: Perturbation = Flipout()) -> Population:  # noqa: B008 - frozen
    policy = policy.double()
    noise = perturbation.sample(trained_parameters(policy), P, torch.Generator().manual_seed(1))
    return Population(policy, noise, 0.05)


def inputs_of(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def one_by_one(population: Population, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack(
            [population.module(m)(row) for m, row in zip(MEMBERS.tolist(), inputs, strict=True)]
        )


def check(policy: nn.Module, inputs: Tensor, perturbation: Perturbation = Flipout()) -> None:  # noqa: B008
    """Compares members side by side with each member alone."""
    population = populate(policy, perturbation)
    rows, alone = population(inputs, members=MEMBERS), one_by_one(population, inputs)
    torch.testing.assert_close(rows, alone, rtol=1e-12, atol=1e-12)


NO_RULE: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "einsum": (lambda: Module(lambda x, w: torch.einsum("i,ij->j", x, w), w=(3, 2)), "einsum", "'w' [3, 2]"),
    "einsum, second": (
        lambda: nn.Sequential(nn.Linear(3, 3), Module(lambda x, w: torch.einsum("i,ij->j", x, w), w=(3, 2))),
        "einsum",
        "'1.w' [3, 2]",
    ),
    "reduction": (lambda: Module(lambda x, w: x * w.sum(), w=(3, 2)), "sum", "'w' [3, 2]"),
    "softmax": (lambda: Module(lambda x, w: x @ w.softmax(0), w=(3, 2)), "softmax", "'w' [3, 2]"),
    "fft": (lambda: Module(lambda x, w: x + torch.fft.fft(w).real, w=(2, 3)), "fft_fft", "'w' [2, 3]"),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
        "_weight_norm",
        "'parametrizations.weight.original1' [2, 3]",
    ),
}
"""A module, the operation that has no rule, and the parameter."""


def test_what_a_layer_or_a_debugger_asks_of_a_parameter_is_answered() -> None:
    def forward(x: Tensor, w: Tensor) -> Tensor:
        assert w.get_device() == -1
        assert w.data_ptr() != 0
        assert repr(w) == "PerturbedParameter('w', shape=[2, 3])"
        assert torch._cudnn_rnn_flatten_weight([w], 1, 3, 0, 2, 0, 1, False, False) is None
        return x @ w.T

    assert populate(Module(forward, w=(2, 3)))(inputs_of(P, 3)).shape == (P, 2)


class TestUnsupported:
    @pytest.mark.parametrize("perturbation", [Flipout(), LowRank()], ids=str)
    @pytest.mark.parametrize(("policy", "operation", "parameter"), NO_RULE.values(), ids=NO_RULE.keys())
    def test_the_error_names_operation_parameter_and_remedies(
        self, policy: Callable[[], nn.Module], operation: str, parameter: str, perturbation: Perturbation
    ) -> None:
        with pytest.raises(UnsupportedOperationError) as caught:
            populate(policy(), perturbation)(inputs_of(P, 3))
        message = str(caught.value)
        assert f"no rule for the operation '{operation}' on the perturbed parameter" in message
        assert parameter in message
        for remedy in ("es_flipout.perturbations.rule", "Independent", "requires_grad_(False)"):
            assert remedy in message

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, for fft and weight_norm
    @pytest.mark.parametrize(("policy", "_", "__"), NO_RULE.values(), ids=NO_RULE.keys())
    def test_independent_noise_needs_no_rule(self, policy: Callable[[], nn.Module], _: str, __: str) -> None:
        check(policy(), inputs_of(4, 3), Independent())

    @pytest.mark.parametrize(("policy", "_", "__"), NO_RULE.values(), ids=NO_RULE.keys())
    def test_a_frozen_parameter_needs_no_rule(self, policy: Callable[[], nn.Module], _: str, __: str) -> None:
        refused = policy().requires_grad_(False)
        check(nn.Sequential(nn.Linear(3, 3), refused), inputs_of(4, 3))

    def test_batch_norm_in_training_mode_is_refused(self) -> None:
        policy = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        with pytest.raises(UnsupportedOperationError, match=r"running statistics .* call policy.eval\(\)"):
            populate(policy)(inputs_of(P, 4, 3))
        assert policy[1].num_batches_tracked in (0, 1)
        assert torch.equal(policy[1].running_mean, torch.zeros(3, dtype=torch.float64))

    def test_an_embedding_with_max_norm_is_refused(self) -> None:
        # torch would write the shortened entries into the table that members share.
        with pytest.raises(UnsupportedOperationError, match=r"'embedding' .* 'weight' \[5, 2\]"):
            populate(nn.Embedding(5, 2, max_norm=1.0))(torch.zeros(P, dtype=torch.int64))

    def test_packed_sequences_are_refused(self) -> None:
        packed = pack_padded_sequence(inputs_of(3, 2, 3), torch.tensor([3, 2]))

        class Packs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.GRU(3, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(packed)[1] + x

        with pytest.raises(UnsupportedOperationError, match="'gru'"):
            populate(Packs())(inputs_of(P, 1))

    def test_a_torch_func_transform_inside_the_policy_is_refused(self) -> None:
        policy = Module(lambda x, w: torch.vmap(lambda row: w @ row)(x), w=(2, 3))
        with pytest.raises(UnsupportedOperationError, match=r"torch\.func transforms of its own"):
            populate(policy)(inputs_of(P, 4, 3))


class TestInputs:
    @pytest.mark.parametrize("rows", [1, 3, 5])
    def test_a_wrong_number_of_rows_is_refused(self, rows: int) -> None:
        population = populate(nn.Linear(3, 2))
        with pytest.raises(ValueError, match=rf"tensors of 4 rows, one per member: got shape \[{rows}, 3\]"):
            population(inputs_of(rows, 3), members=MEMBERS)

    def test_all_inputs_need_the_rows(self) -> None:
        population = populate(nn.Bilinear(3, 3, 2))
        with pytest.raises(ValueError, match=r"of 4 rows, one per member: got shape \[3\]"):
            population(inputs_of(4, 3), inputs_of(3), members=MEMBERS)

    def test_an_input_that_is_not_a_tensor_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"of 6 rows, one per member: got 0\.5"):
            populate(Module(lambda x, w: x * w, w=()))(0.5)

    @pytest.mark.parametrize("perturbation", [Flipout(), Flipout(3), LowRank(2), Independent()], ids=str)
    @pytest.mark.parametrize("policy", [nn.Linear(3, 2), nn.GRUCell(3, 2)], ids=["linear", "gru"])
    def test_no_rows_give_no_rows(self, policy: nn.Module, perturbation: Perturbation) -> None:
        assert populate(policy, perturbation)(inputs_of(0, 3), members=MEMBERS[:0]).shape == (0, 2)


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda p: p.detach(),
    "data": lambda p: p.data,
    "clone": lambda p: p.clone(),
    "to": lambda p: p.to(torch.float64),
    "cpu": lambda p: p.cpu(),
    "requires_grad_": lambda p: p.requires_grad_(False),
    "numpy": lambda p: torch.from_numpy(p.numpy()),
    "tolist": lambda p: torch.tensor(p.tolist()),
    "item": lambda p: torch.tensor([p[0].item(), 1.0, 1.0]),
    "float": lambda p: torch.tensor([float(p[0]), 1.0, 1.0]),
    "as_tensor": lambda p: torch.as_tensor(p),
    "Parameter": lambda p: nn.Parameter(p),
    "copy_": lambda p: torch.zeros(3, dtype=p.dtype).copy_(p),
    "parameters_to_vector": lambda p: nn.utils.parameters_to_vector([p]),
    "iterate": lambda p: torch.stack([each * 1 for each in p]),
    "condition": lambda p: p if (p > 100).all() else 2 * p,
    "deepcopy": lambda p: copy.deepcopy(p),
}
"""Ways for a policy to get a parameter's unperturbed value, and so to act as the center."""


class TestMisuse:
    @pytest.mark.parametrize("perturbation", [Flipout(), Flipout(3), LowRank(), Independent()], ids=str)
    @pytest.mark.parametrize("member", [-1, P, -P, 10**6])
    def test_a_member_that_does_not_exist_is_refused(self, perturbation: Perturbation, member: int) -> None:
        population = populate(nn.Linear(3, 2), perturbation)
        rows = population.select(MEMBERS)
        expected = rows(inputs_of(4, 3))
        wrong, attempts = (
            torch.tensor([0, member]),
            (
                lambda: population(inputs_of(2, 3), members=wrong),
                lambda: population.select(wrong),
                lambda: rows.assign(torch.tensor([0, 1]), wrong),
                lambda: rows.select(wrong),
            ),
        )
        for attempt in attempts:
            with pytest.raises(IndexError, match=f"member {member} of a population of {P}"):
                attempt()
        assert torch.equal(rows(inputs_of(4, 3)), expected)

    @pytest.mark.parametrize("row_wise", [True, False])
    @pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
    def test_reading_a_value_does_not_silently_drop_the_noise(
        self, leak: Callable[[Tensor], Tensor], row_wise: bool
    ) -> None:
        policy = Module(lambda x, gain: x * leak(gain), gain=(3,))
        policy.row_wise = row_wise
        population, inputs = populate(policy), inputs_of(4, 3)
        try:
            rows = population(inputs, members=MEMBERS)
        except (UnsupportedOperationError, RuntimeError):
            return
        torch.testing.assert_close(rows, one_by_one(population, inputs), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("row_wise", [True, False])
    @pytest.mark.parametrize(
        "write",
        [lambda p: p.add_(1), lambda p: p.data.mul_(2), lambda p: p.detach().zero_(), lambda p: p.fill_(1)],
        ids=["add_", "data", "detach", "fill_"],
    )
    def test_a_policy_cannot_write_to_the_center(
        self, write: Callable[[Tensor], Tensor], row_wise: bool
    ) -> None:
        policy = Module(lambda x, gain: x * write(gain), gain=(3,))
        policy.row_wise = row_wise
        before = policy.gain.detach().clone()
        with contextlib.suppress(UnsupportedOperationError):
            populate(policy)(inputs_of(4, 3), members=MEMBERS)
        assert torch.equal(policy.gain, before)

    def test_shape_and_dtype_are_answered(self) -> None:
        def forward(x: Tensor, gain: Tensor) -> Tensor:
            assert gain.shape == (3,)
            assert gain.dtype == torch.float64
            assert (gain.ndim, gain.dim(), gain.size(0), gain.numel(), len(gain)) == (1, 1, 3, 3, 3)
            assert gain.is_floating_point()
            assert gain.device == x.device
            return x * gain

        check(Module(forward, gain=(3,)), inputs_of(4, 3))


class TestRegistration:
    @pytest.fixture(autouse=True)
    def _own_rules(self) -> Iterator[None]:
        rules = dict(RULES)
        yield
        RULES.clear()
        RULES.update(rules)

    @pytest.mark.parametrize("perturbation", [Flipout(3), LowRank(), Independent()], ids=str)
    def test_a_rule_that_writes_the_parameter_out_runs_the_operation(
        self, perturbation: Perturbation
    ) -> None:
        @rule(torch.einsum)
        def einsum(equation: str, x: Tensor, table: PerturbedParameter) -> Tensor:
            assert table.parameter_name == "table"
            assert table.plain.shape == (3, 2)
            return torch.einsum(equation, x, table.written_out())

        policy = Module(lambda x, table: torch.einsum("i,ij->j", x, table), table=(3, 2))
        check(policy, inputs_of(4, 3), perturbation)

    @pytest.mark.parametrize("perturbation", [Flipout(3), LowRank(), Independent()], ids=str)
    def test_a_rule_on_physical_rows_uses_the_product_with_the_noise(
        self, perturbation: Perturbation
    ) -> None:
        @rule(torch.tensordot)
        def tensordot(x: Tensor, table: PerturbedParameter, dims: int, out: None = None) -> Tensor:
            rows = table.context.physical(x)
            assert rows.shape == (4, 5, 3)
            outputs = table.noise.transposed().add_linear(rows @ table.plain, rows)
            return table.context.logical(outputs)

        policy = Module(lambda x, table: torch.tensordot(x, table, 1), table=(3, 2))
        check(policy, inputs_of(4, 5, 3), perturbation)

    def test_one_rule_serves_several_operations(self) -> None:
        @rule(torch.cumsum, Tensor.cumsum)
        def cumsum(table: PerturbedParameter, dim: int) -> Tensor:
            return torch.cumsum(table.written_out(), dim)

        for function in (lambda x, p: x + p.cumsum(0), lambda x, p: x + torch.cumsum(p, dim=0)):
            check(Module(function, p=(2, 3)), inputs_of(4, 3))

    def test_registering_returns_the_function(self) -> None:
        def forward(x: Tensor) -> Tensor:
            return x

        assert rule(torch.cumsum)(forward) is forward

    def test_a_user_defined_rule_replaces_a_built_in_one(self) -> None:
        @rule(F.linear)
        def linear(x: Tensor, weight: PerturbedParameter, bias: PerturbedParameter) -> Tensor:
            return x[..., :2] * 0 + 7

        assert torch.equal(populate(nn.Linear(3, 2))(inputs_of(P, 3)), torch.full((P, 2), 7.0).double())
