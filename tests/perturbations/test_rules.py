"""How torch operations run with perturbed parameters, and what they say when they cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout.perturbations import (
    Flipout,
    Independent,
    PerturbedParameter,
    UnsupportedOperationError,
    rule,
    rules,
)
from es_flipout.population import Population

MEMBERS = torch.tensor([3, 0, 5, 3])
PERTURBATIONS = [Independent(), Flipout(), Flipout("gaussian", num_bases=3)]


class Module(nn.Module):
    """Any function of the input and of named parameters, as a module."""

    def __init__(self, function: Callable[..., Tensor], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        for name, size in sizes.items():
            value = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5  # fit for log and sqrt
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs, **dict(self._parameters))


def populate(policy: nn.Module, perturbation: Independent | Flipout | None = None) -> Population:
    sampler = perturbation or Flipout()
    noise = sampler.sample(dict(policy.named_parameters()), 6, torch.Generator().manual_seed(1))
    return Population(policy, noise, 0.05)


def inputs_of(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def check(policy: nn.Module, inputs: Tensor, perturbation: Independent | Flipout | None = None) -> Tensor:
    """Compares all rows at once with each member alone, and returns the rows."""
    population = populate(policy.double(), perturbation)
    alone = torch.cat(
        [
            torch.func.functional_call(policy, population.member(int(member)), (row.unsqueeze(0),))
            for member, row in zip(MEMBERS, inputs, strict=True)
        ]
    ).detach()
    rows = population.select(MEMBERS)(inputs)
    assert type(rows) is Tensor
    torch.testing.assert_close(rows, alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(rows, policy(inputs).detach())  # the noise was there at all
    return rows


class TestLinear:
    @pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("size", [(4, 3), (4, 5, 3), (4, 2, 5, 3), (4, 4, 3)], ids=str)
    def test_matches_each_member_alone(
        self, size: tuple[int, ...], bias: bool, perturbation: Independent | Flipout
    ) -> None:
        assert check(nn.Linear(3, 2, bias=bias), inputs_of(*size), perturbation).shape == (*size[:-1], 2)

    def test_only_the_bias_may_be_a_parameter(self) -> None:
        constant = inputs_of(2, 3)
        check(Module(lambda x, bias: F.linear(x, constant, bias), bias=(2,)), inputs_of(4, 3))

    def test_the_input_of_a_linear_map_may_not_be_perturbed(self) -> None:
        constant = inputs_of(2, 3)
        policy = Module(lambda x, start: x + F.linear(start, constant), start=(3,))
        with pytest.raises(UnsupportedOperationError, match="'start' is the input of a linear map"):
            populate(policy).select(MEMBERS)(inputs_of(4, 2))

    def test_torchs_own_keywords_work(self) -> None:
        policy = Module(lambda x, w, b: F.linear(input=x, weight=w, bias=b), w=(2, 3), b=(2,))
        check(policy, inputs_of(4, 3))

    def test_an_input_without_rows_is_refused(self) -> None:
        # As wide as there are rows: the width must not pass for them.
        with pytest.raises(ValueError, match=r"shape \[4\]: the first dimension must be the row"):
            populate(nn.Linear(4, 2).double()).select(MEMBERS)(inputs_of(4))

    @pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=str)
    def test_no_rows_give_no_rows(self, perturbation: Independent | Flipout) -> None:
        rows = populate(nn.Linear(3, 2).double(), perturbation).select(MEMBERS[:0])
        assert rows(inputs_of(0, 3)).shape == (0, 2)

    @pytest.mark.parametrize("rows", [1, 3, 5])
    def test_a_wrong_number_of_rows_is_refused(self, rows: int) -> None:
        population = populate(nn.Linear(3, 2).double())
        with pytest.raises(ValueError, match=rf"shape \[{rows}, 3\], but .* of 4 rows"):
            population.select(MEMBERS)(inputs_of(rows, 3))


class TestElementwise:
    @pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=str)
    @pytest.mark.parametrize(
        "function",
        [
            pytest.param(lambda x, p: x * p, id="gain"),
            pytest.param(lambda x, p: p * x + p, id="gain-and-offset"),
            pytest.param(lambda x, p: x - p, id="offset"),
            pytest.param(lambda x, p: 1.0 - p * x, id="constant-minus-parameter"),
            pytest.param(lambda x, p: x / p, id="divide-by-parameter"),
            pytest.param(lambda x, p: 2.0 / (-p) * x, id="divide-parameter-from-left"),
            pytest.param(lambda x, p: x + p.exp(), id="exp-of-parameter"),
            pytest.param(lambda x, p: x + torch.log(p) + p.sqrt(), id="log-and-sqrt-of-parameter"),
            pytest.param(lambda x, p: x * F.softplus(p) + torch.tanh(p), id="softplus-and-tanh"),
            pytest.param(lambda x, p: x.abs() ** p, id="parameter-as-exponent"),
            pytest.param(lambda x, p: torch.maximum(x, p), id="maximum"),
            pytest.param(lambda x, p: x * p.clamp(min=0.9, max=1.6), id="clamp-with-keywords"),
            pytest.param(lambda x, p: torch.add(x, p, alpha=3.0), id="add-with-alpha"),
        ],
    )
    @pytest.mark.parametrize("size", [(3,), ()], ids=["vector", "scalar"])
    def test_matches_each_member_alone(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        size: tuple[int, ...],
        perturbation: Independent | Flipout,
    ) -> None:
        check(Module(function, p=size), inputs_of(4, 3), perturbation)

    @pytest.mark.parametrize("size", [(3,), ()], ids=["vector", "scalar"])
    @pytest.mark.parametrize("inputs", [(4, 5, 3), (4, 4, 3)], ids=str)
    def test_a_parameter_meets_inputs_of_three_dimensions(
        self, inputs: tuple[int, ...], size: tuple[int, ...]
    ) -> None:
        # With as many steps as rows, a gain that lines up with the wrong one would go unseen by broadcasting.
        check(Module(lambda x, p: x * p, p=size), inputs_of(*inputs))

    @pytest.mark.parametrize("size", [(4, 5, 3), (4, 4, 3)], ids=str)
    def test_a_parameter_transformed_first_keeps_its_rows(self, size: tuple[int, ...]) -> None:
        check(Module(lambda x, log_std: x * (2.0 * log_std.exp() + 1.0), log_std=(3,)), inputs_of(*size))

    def test_a_scalar_meets_one_number_a_row(self) -> None:
        policy = Module(lambda x, scale: x.sum(dim=-1) * scale, scale=())
        assert check(policy, inputs_of(4, 3)).shape == (4,)

    @pytest.mark.parametrize("rows", [1, 5])
    def test_a_wrong_number_of_rows_is_refused(self, rows: int) -> None:
        population = populate(Module(lambda x, gain: x * gain, gain=(3,)))
        with pytest.raises(ValueError, match=rf"shape \[{rows}, 3\], but .* of 4 rows"):
            population.select(MEMBERS)(inputs_of(rows, 3))

    def test_vector_and_scalar_parameters_mix(self) -> None:
        def forward(x: Tensor, gain: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
            return x * (gain * scale) + offset

        check(Module(forward, gain=(3,), scale=(), offset=(3,)), inputs_of(4, 3))

    def test_a_constant_vector_meets_a_parameter(self) -> None:
        constant = inputs_of(3)
        check(Module(lambda x, gain: x + constant * gain, gain=(3,)), inputs_of(4, 3))

    def test_exponentiated_log_std_is_positive_and_a_row_each(self) -> None:
        policy = Module(lambda x, log_std: x * 0 + log_std.exp(), log_std=(3,))
        rows = check(policy, inputs_of(4, 3))
        assert (rows > 0).all()
        assert torch.equal(rows[0], rows[3])  # MEMBERS names member 3 twice
        assert not torch.equal(rows[0], rows[1])

    def test_a_matrix_parameter_is_refused_by_name(self) -> None:
        policy = Module(lambda x, table: (x * table).sum(0), table=(4, 3))
        with pytest.raises(UnsupportedOperationError, match=r"'table' has shape \[4, 3\]"):
            populate(policy).select(MEMBERS)(inputs_of(4, 3))


class TestUnsupported:
    @pytest.mark.parametrize(
        ("policy", "operation", "parameter"),
        [
            (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), "layer_norm", "1.weight"),
            (Module(lambda x, cube: F.bilinear(x, x, cube), cube=(2, 3, 3)), "bilinear", "cube"),
            (Module(lambda x, table: x @ table, table=(3, 2)), "matmul", "table"),
            (Module(lambda x, gain: x.mul_(gain), gain=(3,)), "mul_", "gain"),
            (Module(lambda x, gain: x * gain.sum(), gain=(3,)), "sum", "gain"),
            (Module(lambda x, table: x @ table.T, table=(2, 3)), "T", "table"),
            (Module(lambda x, gain: torch.cat([x[0], gain]), gain=(3,)), "cat", "gain"),
        ],
        ids=["layer-norm", "bilinear", "matmul", "in-place", "reduction", "property", "list"],
    )
    def test_error_names_operation_and_parameter(
        self, policy: nn.Module, operation: str, parameter: str
    ) -> None:
        rows = populate(policy.double()).select(MEMBERS)
        with pytest.raises(UnsupportedOperationError) as caught:
            rows(inputs_of(4, 3))
        message = str(caught.value)
        assert f"'{operation}'" in message
        assert f"'{parameter}'" in message
        assert "es_flipout.perturbations.rule" in message

    def test_reading_a_value_does_not_silently_drop_the_noise(self) -> None:
        # Each of these would hand over the unperturbed value, and the member would run as the centre.
        for leak in (
            lambda p: p.detach(),
            lambda p: p.data,
            lambda p: p.clone(),
            lambda p: torch.from_numpy(p.numpy()),
            lambda p: torch.tensor(p.tolist()),
        ):
            policy = Module(lambda x, gain, leak=leak: x * leak(gain), gain=(3,))
            with pytest.raises(UnsupportedOperationError):
                populate(policy).select(MEMBERS)(inputs_of(4, 3))

    def test_shape_and_dtype_are_answered(self) -> None:
        def forward(x: Tensor, gain: Tensor) -> Tensor:
            assert gain.shape == (3,)
            assert gain.dtype == torch.float64
            assert (gain.ndim, gain.dim(), gain.size(0), gain.numel(), len(gain)) == (1, 1, 3, 3, 3)
            assert gain.device == x.device
            return x * gain

        check(Module(forward, gain=(3,)), inputs_of(4, 3))


class TestRegistration:
    @pytest.fixture(autouse=True)
    def _own_rules(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "RULES", dict(rules.RULES))

    def test_a_registered_rule_runs_the_operation(self) -> None:
        policy = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        with pytest.raises(UnsupportedOperationError):
            check(policy, inputs_of(4, 3))

        @rule(F.layer_norm)
        def layer_norm(
            x: Tensor, shape: list[int], weight: PerturbedParameter, bias: PerturbedParameter, eps: float
        ) -> Tensor:
            return F.layer_norm(x, shape, eps=eps) * weight.rows() + bias.rows()

        check(policy, inputs_of(4, 3))

    def test_one_rule_serves_several_operations(self) -> None:
        @rule(torch.matmul, Tensor.matmul, Tensor.__matmul__)
        def matmul(x: Tensor, table: PerturbedParameter) -> Tensor:
            return torch.einsum("ni,nij->nj", x, table.rows())

        for function in (lambda x, p: x @ p, lambda x, p: x.matmul(p), lambda x, p: torch.matmul(x, p)):
            check(Module(function, p=(3, 2)), inputs_of(4, 3))

    def test_registering_returns_the_function(self) -> None:
        def forward(x: Tensor) -> Tensor:
            return x

        assert rule(torch.cumsum)(forward) is forward
