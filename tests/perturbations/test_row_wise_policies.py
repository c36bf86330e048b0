"""Policies that declare themselves row_wise: a row gives the same bits alone and among others.

Bit-identity is promised on the CPU for linear maps, tanh, elementwise parameters and recurrent cells, with
the rows hidden by torch.vmap or not; what would take the rows for something else is refused.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation, UnsupportedOperationError
from es_flipout.population import Population

P, ROWS = 24, 61
FAMILIES = pytest.mark.parametrize(
    "perturbation", [Flipout(), Flipout(4), LowRank(), LowRank(3), Independent()], ids=str
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
MODES = pytest.mark.parametrize("row_wise", [True, False], ids=["row-wise", "vmap"])


class Recurrent(nn.Module):
    """A layer, its normalization, a gain and a cell with its state."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(11, 9), nn.LayerNorm(9)
        self.gain, self.log_scale = nn.Parameter(torch.empty(9)), nn.Parameter(torch.empty(()))
        self.cell, self.head = kind(9, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        features = self.norm(torch.tanh(self.layer(x))) * self.gain - self.log_scale.exp()
        state = self.cell(features, state) if len(state) == 2 else (self.cell(features, *state),)
        return (self.head(state[0]), *state)


class Feedforward(nn.Module):
    """Layers with a gain, an offset and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Linear(11, 33),
            nn.Linear(33, 17, bias=False),
            nn.Linear(17, 3),
        )
        self.norm = nn.LayerNorm(33)
        self.gain, self.offset = nn.Parameter(torch.empty(17)), nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.tanh(self.second(self.norm(torch.tanh(self.first(x)))) * self.gain + self.offset)
        return (self.third(x),)


CASES: dict[str, tuple[Callable[[], nn.Module], list[list[int]]]] = {
    "feedforward [N, O]": (Feedforward, [[11]]),
    "feedforward [N, B, O]": (Feedforward, [[3, 11]]),
    "gru [N, O]": (lambda: Recurrent(nn.GRUCell), [[11], [7]]),
    "rnn [N, O]": (lambda: Recurrent(nn.RNNCell), [[11], [7]]),
    "lstm [N, O]": (lambda: Recurrent(nn.LSTMCell), [[11], [7], [7]]),
}
every_case = pytest.mark.parametrize(("make", "sizes"), CASES.values(), ids=CASES.keys())


def populate(policy: nn.Module, perturbation: Perturbation, dtype: torch.dtype, row_wise: bool) -> Population:
    generator = torch.Generator().manual_seed(0)
    policy = policy.to(dtype)
    policy.row_wise = row_wise
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=generator)
    return Population(policy, perturbation.sample(trained_parameters(policy), P, generator), 0.2)


def inputs_of(sizes: list[list[int]], dtype: torch.dtype, rows: int = ROWS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, *size, generator=generator, dtype=dtype) for size in sizes]


@MODES
@FAMILIES
@every_case
def test_rows_equal_the_dense_oracle(
    make: Callable[[], nn.Module], sizes: list[list[int]], perturbation: Perturbation, row_wise: bool
) -> None:
    population = populate(make(), perturbation, torch.float64, row_wise)
    inputs, members = inputs_of(sizes, torch.float64, 5), [3, 0, 5, 3, 23]
    results = population(*inputs, members=torch.tensor(members))
    for row, member in enumerate(members):
        with torch.no_grad():
            expected = population.module(member)(*(x[row] for x in inputs))
        for result, alone in zip(results, expected, strict=True):
            torch.testing.assert_close(result[row], alone, rtol=1e-11, atol=1e-11)


@MODES
@DTYPES
@FAMILIES
@every_case
def test_a_row_does_not_depend_on_the_other_rows(
    make: Callable[[], nn.Module],
    sizes: list[list[int]],
    perturbation: Perturbation,
    dtype: torch.dtype,
    row_wise: bool,
) -> None:
    if isinstance(perturbation, Independent) and len(sizes[0]) > 1:
        pytest.skip("not promised: batches of dense noise are batched matrix products")
    population = populate(make(), perturbation, dtype, row_wise)
    inputs = inputs_of(sizes, dtype)
    generator = torch.Generator().manual_seed(2)
    members = torch.randint(P, (ROWS,), generator=generator)
    whole = population(*inputs, members=members)
    for length in (1, 2, 3, 5, 16, 60):
        some = torch.randperm(ROWS, generator=generator)[:length]
        part = population(*(x[some] for x in inputs), members=members[some])
        for one, other in zip(part, whole, strict=True):
            assert torch.equal(one, other[some]), length


@DTYPES
@FAMILIES
@every_case
def test_both_modes_give_the_same_bits(
    make: Callable[[], nn.Module], sizes: list[list[int]], perturbation: Perturbation, dtype: torch.dtype
) -> None:
    inputs, members = inputs_of(sizes, dtype), torch.arange(ROWS) % P
    one, other = (
        populate(make(), perturbation, dtype, row_wise)(*inputs, members=members)
        for row_wise in (True, False)
    )
    assert all(map(torch.equal, one, other))


class Module(nn.Module):
    """Any function of the input, of modules and of named parameters, as a row-wise policy."""

    row_wise = True

    def __init__(self, function: Callable[..., Any], *modules: nn.Module, **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(size)))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts, **dict(self._parameters))


# There are as many rows as features and positions (4), so only the rule can tell them apart.
MISREAD: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: Module(lambda x, p: x * p.view(4), p=(2, 2)),
    "reshape": lambda: Module(lambda x, p: x * p.reshape(-1), p=(2, 2)),
    "p[1]": lambda: Module(lambda x, p: x * p[1], p=(2, 4)),
    "p.expand": lambda: Module(lambda x, p: torch.cat([x, p.expand_as(x)], -1), p=(4,)),
    "stack": lambda: Module(lambda x, p: x * torch.stack([p, p]).sum(0), p=(4,)),
    "sum": lambda: Module(lambda x, p: x * p.sum(), p=(4,)),
    "nn.GRU": lambda: Module(lambda x, m: m(x)[0], nn.GRU(4, 3)),
    "nn.LSTM": lambda: Module(lambda x, m: m(x)[0], nn.LSTM(4, 3)),
    "attention": lambda: Module(lambda x, m: m(x, x, x)[0], nn.MultiheadAttention(4, 2)),
    "learned query": lambda: Module(lambda x, p: F.scaled_dot_product_attention(p, x, x), p=(4, 4)),
    "matrix elementwise": lambda: Module(lambda x, p: x * p, p=(4, 4)),
    "one-row matrix elementwise": lambda: Module(lambda x, p: x * p, p=(1, 4)),
    "LayerNorm over two dimensions": lambda: nn.LayerNorm((4, 4)),
    "PReLU a channel": lambda: nn.PReLU(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "BatchNorm": lambda: nn.BatchNorm1d(4).eval(),
    "InstanceNorm": lambda: nn.InstanceNorm1d(4, affine=True),
    "convolution": lambda: nn.Conv1d(4, 4, 1),
}


@pytest.mark.parametrize("perturbation", [Flipout(), Independent()], ids=str)
@pytest.mark.parametrize("make", MISREAD.values(), ids=MISREAD.keys())
def test_an_operation_that_would_misread_rows_is_refused(
    make: Callable[[], nn.Module], perturbation: Perturbation
) -> None:
    population = populate(make(), perturbation, torch.float64, row_wise=True)
    with pytest.raises(UnsupportedOperationError, match="row_wise"):
        population(*inputs_of([[4, 4]], torch.float64, 4), members=torch.arange(4))


@pytest.mark.parametrize("size", [[4], [4, 4], [2, 3, 4]], ids=str)
def test_a_scalar_parameter_with_one_number_per_row(size: list[int]) -> None:
    # A value head, squeezed, times a learned scale.
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x.sum(dim=-1) * scale

    (x,) = inputs_of([size], torch.float64, 4)
    one, other = (
        populate(Module(forward, scale=()), Flipout(), torch.float64, row_wise)(x, members=torch.arange(4))
        for row_wise in (True, False)
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_tensor_whose_first_dimension_is_not_the_row_is_refused() -> None:
    population = populate(
        Module(lambda x, m: m(x.flatten(0, 1)), nn.Linear(4, 2)), Flipout(), torch.float64, True
    )
    with pytest.raises(
        ValueError, match=r"shape \[20, 4\], but there are 5 rows: the first dimension must be"
    ):
        population(*inputs_of([[4, 4]], torch.float64, 5), members=torch.arange(5))
