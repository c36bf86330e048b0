"""Members side by side: precision, autograd, inference mode, threads, random numbers, torch.compile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.population import Population

P = 12
EVERY_FAMILY = pytest.mark.parametrize(
    "perturbation", [Flipout(), Flipout(3, "gaussian"), LowRank(2), Independent()], ids=str
)


def filled(policy: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1:], default=1)
            )
    return policy


def populate(policy: nn.Module, perturbation: Perturbation = Flipout()) -> Population:  # noqa: B008 - frozen
    noise = perturbation.sample(trained_parameters(policy), P, torch.Generator().manual_seed(1))
    return Population(policy, noise, 0.25)


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2)).to(dtype)


class Policy(nn.Module):
    """Every kind of layer that a small policy has."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.layer = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(16, 8)
        self.norm, self.cell = nn.LayerNorm(8), nn.GRUCell(8, 4)
        self.gain, self.table = nn.Parameter(torch.empty(4)), nn.Embedding(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.tanh(self.layer(self.image(x.unsqueeze(-2)).flatten(-2)))
        return self.cell(self.norm(features)) * self.gain + self.table((x > 0).sum(-1) % 3)


class TestPrecision:
    @EVERY_FAMILY
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)],
        ids=str,
    )
    def test_results_are_those_of_the_members_in_float64(
        self, perturbation: Perturbation, dtype: torch.dtype, tolerance: float
    ) -> None:
        population, x = populate(filled(Policy()).to(dtype), perturbation), randn(P, 8, dtype=dtype)
        rows = population(x)
        assert rows.dtype == dtype
        with torch.no_grad():
            exact = torch.stack([population.module(m).double()(x[m].double()) for m in range(P)])
        torch.testing.assert_close(rows.double(), exact, rtol=tolerance, atol=tolerance)
        center = population.policy.double()(x.double())
        assert (exact - center).abs().max() > 0.3  # there is noise

    @EVERY_FAMILY
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_the_gradient_is_summed_in_float32_or_wider(
        self, perturbation: Perturbation, dtype: torch.dtype
    ) -> None:
        # Summed in bfloat16, a total of P utilities near 1 would be wrong by several percent. Rounding to the
        # parameter's dtype at the end costs half a unit in the last place.
        population = populate(filled(Policy()).to(dtype), perturbation)
        utilities = 1 + randn(P, dtype=torch.float64) / 8
        gradient = population.gradient(utilities)
        for name, value in trained_parameters(population.policy).items():
            eps = torch.stack([population.noise.member(m)[name].double() for m in range(P)])
            exact = torch.tensordot(utilities, eps, 1) / (P * 0.25)
            assert gradient[name].dtype == value.dtype == dtype
            last_place = torch.finfo(dtype).eps * (exact.abs() + (0.02 if dtype == torch.bfloat16 else 10))
            assert ((gradient[name].double() - exact).abs() <= 2 * last_place).all(), name

    @EVERY_FAMILY
    def test_dtypes_may_differ_between_parameters(self, perturbation: Perturbation) -> None:
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.coarse, self.fine = nn.Linear(5, 4).bfloat16(), nn.Linear(4, 3).double()
                self.gain = nn.Parameter(torch.empty(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.fine(torch.tanh(self.coarse(x)).double()) * self.gain

        policy, x = filled(Mixed()), randn(P, 5, dtype=torch.bfloat16)
        population = populate(policy, perturbation)
        rows = population(x)
        with torch.no_grad():
            alone = torch.stack([population.module(m)(x[m]) for m in range(P)])
        assert rows.dtype == torch.float64
        torch.testing.assert_close(rows, alone, rtol=0.05, atol=0.05)
        gradient = population.gradient(torch.linspace(-1, 1, P))
        for name, value in policy.named_parameters():
            assert population.member(0)[name].dtype == gradient[name].dtype == value.dtype


class TestAutograd:
    @pytest.mark.parametrize("row_wise", [True, False])
    def test_results_carry_no_graph_and_parameters_stay_as_they_were(self, row_wise: bool) -> None:
        policy = filled(nn.Linear(5, 3))
        policy.row_wise = row_wise
        population, x = populate(policy), randn(P, 5).requires_grad_()
        results = [
            population(x),
            *population.gradient(torch.ones(P)).values(),
            *population.member(0).values(),
        ]
        assert not any(result.requires_grad for result in results)
        assert all(
            value.requires_grad and value.is_leaf and value.grad is None for value in policy.parameters()
        )
        policy(x).sum().backward()
        assert all(value.grad is not None for value in policy.parameters())

    def test_a_member_as_a_module_can_be_trained(self) -> None:
        population = populate(filled(nn.Linear(5, 3)))
        member = population.module(3)
        before = population.policy.weight.detach().clone()
        torch.optim.SGD(member.parameters(), lr=0.1)
        member(randn(5)).sum().backward()
        assert all(value.grad is not None for value in member.parameters())
        with torch.no_grad():
            member.weight.zero_()
        assert torch.equal(population.policy.weight, before)
        assert (population.module(3).weight != 0).all()

    @pytest.mark.parametrize("made", [True, False], ids=["made-inside", "made-outside"])
    @pytest.mark.parametrize("used", [True, False], ids=["used-inside", "used-outside"])
    @EVERY_FAMILY
    def test_a_selection_survives_inference_mode(
        self, perturbation: Perturbation, made: bool, used: bool
    ) -> None:
        policy, x, members = filled(nn.Linear(5, 3)), randn(4, 5), torch.tensor([3, 0, 11, 7])
        expected = populate(policy, perturbation)(x, members=members)
        with torch.inference_mode(made):
            population = populate(policy, perturbation)
            rows = population.select(torch.tensor([3, 0, 5, 7]))
            rows.each(x)
        with torch.inference_mode(used):
            rows.assign(torch.tensor([2]), torch.tensor([11]))
            assert torch.equal(rows.each(x), expected)
            population.gradient(torch.ones(P))
        assert torch.equal(rows.each(x), expected)


MEETING = threading.Barrier(2)


class Meets(nn.Module):
    """A policy in which two simultaneous forwards wait for each other halfway through."""

    def __init__(self, row_wise: bool) -> None:
        super().__init__()
        self.row_wise = row_wise
        self.first, self.cell = nn.Linear(5, 4), nn.GRUCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        MEETING.wait(timeout=20)
        return self.cell(x)


@pytest.mark.parametrize("row_wise", [True, False])
@EVERY_FAMILY
def test_two_threads_may_run_selections_of_one_population(perturbation: Perturbation, row_wise: bool) -> None:
    population = populate(filled(Meets(row_wise)), perturbation)
    members = [torch.arange(7), torch.tensor([11, 0, 4])]  # with different numbers of rows
    selections = [population.select(each) for each in members]

    def run(index: int) -> list[Tensor]:
        return [selections[index].each(randn(len(members[index]), 5)) for _ in range(3)]

    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(run, range(2)))
        for each, results in zip(members, together, strict=True):
            with torch.no_grad():
                alone = [
                    threads.map(population.module(m), randn(len(each), 5)[n : n + 1].repeat(2, 1))
                    for n, m in enumerate(each.tolist())
                ]
                expected = torch.stack([next(iter(pair)) for pair in alone])
            for result in results:
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class TestRandomness:
    def results(self, policy: nn.Module, perturbation: Perturbation = Flipout()) -> Tensor:  # noqa: B008
        torch.manual_seed(0)
        return populate(filled(policy), perturbation)(
            torch.ones(64, 200), members=torch.zeros(64, dtype=torch.int64)
        )

    @pytest.mark.parametrize("row_wise", [True, False])
    def test_dropout_differs_between_rows(self, row_wise: bool) -> None:
        policy = nn.Sequential(nn.Dropout(0.25), nn.PReLU())
        policy.row_wise = row_wise
        rows = self.results(policy)
        assert len({tuple(row.tolist()) for row in rows}) == 64  # all of the same member
        # 12,800 draws: a share of 0.25 has a standard error of 0.004.
        assert float((rows == 0).float().mean()) == pytest.approx(0.25, abs=0.025)

    @pytest.mark.parametrize(
        "layer",
        [nn.GRU(10, 10, num_layers=2, dropout=0.5), nn.LSTM(10, 10, num_layers=3, dropout=0.5)],
        ids=["gru", "lstm"],
    )
    def test_dropout_between_recurrent_layers_differs_between_rows(self, layer: nn.Module) -> None:
        class Sequence(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x.view(20, 10))[0]

        rows = self.results(Sequence())
        assert rows.shape == (64, 20, 10)
        assert len({tuple(row.flatten().tolist()) for row in rows}) == 64

    def test_dropout_of_attention_weights_differs_between_rows(self) -> None:
        class Sequence(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(10, 2, dropout=0.5)

            def forward(self, x: Tensor) -> Tensor:
                return self.attention(*[x.view(20, 10)] * 3)[1]

        weights = self.results(Sequence())
        assert len({tuple(row.flatten().tolist()) for row in weights}) == 64
        # The inputs are ones: both heads' weights are 1 / 20, doubled where they are kept (half of them, with
        # a standard error of 0.002 over the 51,200 of them), and averaged.
        assert float(weights.double().mean()) == pytest.approx(1 / 20, rel=0.03)
        assert set((20 * weights).flatten().round(decimals=4).tolist()) == {0.0, 1.0, 2.0}

    def test_dropout_is_off_in_eval_mode(self) -> None:
        rows = self.results(nn.Sequential(nn.Dropout(0.25), nn.PReLU()).eval())
        assert (rows == rows[0]).all()

    @pytest.mark.parametrize("row_wise", [True, False])
    @EVERY_FAMILY
    def test_random_numbers_of_the_policy_differ_between_rows(
        self, perturbation: Perturbation, row_wise: bool
    ) -> None:
        class Stochastic(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mean, self.log_std = nn.Linear(200, 2), nn.Parameter(torch.empty(2))

            def forward(self, x: Tensor) -> Tensor:
                mean = self.mean(x)
                return mean + self.log_std.exp() * torch.randn_like(mean)

        policy = Stochastic()
        policy.row_wise = row_wise
        rows = self.results(policy, perturbation)
        assert len({tuple(row.tolist()) for row in rows}) == 64


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("ran_before", [True, False], ids=["ran-before", "first-run"])
@pytest.mark.parametrize(("backend", "row_wise"), [("eager", True), ("aot_eager", False)])
def test_a_function_around_a_population_can_be_compiled(
    backend: str, row_wise: bool, ran_before: bool
) -> None:
    policy = filled(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    policy.row_wise = row_wise
    population, x = populate(policy), randn(P, 5)

    def around(x: Tensor) -> Tensor:
        return F.relu(population(2 * x)) + 1

    if ran_before:
        around(x)
    torch.compiler.reset()
    compiled = torch.compile(around, backend=backend)
    results = compiled(x), compiled(-x)
    torch.testing.assert_close(results, (around(x), around(-x)))
