"""Padded linear maps are correct, and a row's result does not depend on the other rows, to the last bit."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout.choices import Activation
from es_flipout.perturbations import Flipout, Independent, LowRank, Perturbation
from es_flipout.perturbations.padded_linear import padded_linear
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SIZES = [*(1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 17, 24, 27, 31, 32, 33, 45, 64, 67, 100, 128, 348)]
"""Numbers of inputs and outputs, including those of real tasks."""
ROWS = 300


def randn(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slices(rng: np.random.Generator, count: int) -> list[slice]:
    """Draws slices of ROWS rows, of every small length and some large ones, at any offset."""
    lengths = [*range(1, 20), *rng.integers(20, ROWS, count).tolist()]
    return [slice(first := int(rng.integers(0, ROWS - length + 1)), first + length) for length in lengths]


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(7, 5), (4, 16), (1, 3), (0, 5), (3, 6, 5), (2, 3, 4, 5), (3, 0, 5)], ids=str
)
def test_is_torchs_linear_to_rounding(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    for outputs in (1, 6, 16, 40):
        inputs, weight = randn(*shape, dtype=dtype), randn(outputs, shape[-1], dtype=dtype, seed=1)
        offset = randn(outputs, dtype=dtype, seed=2) if bias else None
        result = padded_linear(inputs, weight, offset)
        assert result.shape == (*shape[:-1], outputs)
        assert result.dtype == dtype
        torch.testing.assert_close(result, F.linear(inputs, weight, offset))


@DTYPES
def test_a_row_is_the_same_in_any_number_of_rows_and_at_any_place(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for seed, num_inputs in enumerate(SIZES):
        for num_outputs in rng.choice(SIZES, 7, replace=False).tolist():
            inputs = randn(ROWS, num_inputs, dtype=dtype, seed=seed)
            weight, bias = (
                randn(num_outputs, num_inputs, dtype=dtype, seed=1),
                randn(num_outputs, dtype=dtype),
            )
            for offset in (bias, None):
                whole = padded_linear(inputs, weight, offset)
                for part in slices(rng, 5):
                    alone = padded_linear(inputs[part], weight, offset)
                    assert torch.equal(alone, whole[part]), (num_inputs, num_outputs, part)
            order = torch.from_numpy(rng.permutation(ROWS))
            assert torch.equal(padded_linear(inputs[order], weight), whole[order]), (num_inputs, num_outputs)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_so_is_a_row_of_several_vectors(tokens: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(tokens)
    for num_inputs, num_outputs in ((5, 3), (17, 6), (32, 32), (33, 64)):
        inputs = randn(ROWS, tokens, num_inputs, dtype=dtype)
        weight, bias = randn(num_outputs, num_inputs, dtype=dtype, seed=1), randn(num_outputs, dtype=dtype)
        whole = padded_linear(inputs, weight, bias)
        for part in slices(rng, 8):
            assert torch.equal(padded_linear(inputs[part], weight, bias), whole[part]), (num_inputs, part)


@DTYPES
def test_so_is_a_row_of_some_of_the_features(dtype: torch.dtype) -> None:
    # A policy that looks at a part of the observation makes such views, with any alignment.
    rng = np.random.default_rng(0)
    for num_inputs, num_outputs in ((5, 3), (17, 6), (32, 32), (27, 64)):
        observations = randn(ROWS, num_inputs + 6, dtype=dtype)
        weight = randn(num_outputs, num_inputs, dtype=dtype, seed=1)
        whole = padded_linear(observations[:, 1 : num_inputs + 1], weight)
        for part in slices(rng, 20):
            rows = observations[part].clone()[:, 1 : num_inputs + 1]
            assert torch.equal(padded_linear(rows, weight), whole[part]), (num_inputs, part)


@DTYPES
@pytest.mark.parametrize("size", [(11,), (3, 11)], ids=["vectors", "sequences"])
@pytest.mark.parametrize(
    "perturbation", [Flipout(), Flipout(4), LowRank(), LowRank(3), Independent()], ids=str
)
def test_so_is_a_perturbed_map(perturbation: Perturbation, size: tuple[int, ...], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for num_outputs in (1, 6, 17, 64):
        layer = torch.nn.Linear(size[-1], num_outputs, dtype=dtype)
        noise = perturbation.sample(dict(layer.named_parameters()), 320, torch.Generator().manual_seed(1))
        population, inputs = Population(layer, noise, 0.13), randn(ROWS, *size, dtype=dtype)
        whole = population.select(torch.arange(ROWS))(inputs)
        for part in slices(rng, 5):
            rows = population.select(torch.arange(ROWS)[part])
            assert torch.equal(rows(inputs[part]), whole[part]), (num_outputs, part)


@DTYPES
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize(
    "perturbation", [Flipout(), Flipout(4), LowRank(), LowRank(3), Independent()], ids=str
)
def test_a_member_acts_the_same_beside_any_others(
    perturbation: Perturbation, activation: Activation, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(0)
    for num_inputs, hidden, num_outputs in ((4, (5,), 1), (11, (64, 33), 3), (27, (), 8), (45, (16, 16), 17)):
        policy = MLPPolicy(
            spaces.Box(-np.inf, np.inf, (num_inputs,)),
            # The middle and half-width of this range are not exact in floating point.
            spaces.Box(-0.3, 0.7, (num_outputs,)),
            hidden_sizes=hidden,
            activation=activation,
            generator=torch.Generator().manual_seed(0),
        ).to(dtype)
        generator = torch.Generator().manual_seed(1)
        noise = perturbation.sample(dict(policy.named_parameters()), 320, generator)
        population = Population(policy, noise, 0.13)
        members = torch.from_numpy(rng.permutation(320)[:ROWS])
        observations = 3.0 * randn(ROWS, num_inputs, dtype=dtype)
        whole = population.select(members)(observations)
        for part in slices(rng, 5):
            actions = population.select(members[part])(observations[part])
            assert torch.equal(actions, whole[part]), (num_inputs, hidden, num_outputs, part)


@DTYPES
@pytest.mark.parametrize("perturbation", [Flipout(), Independent(), LowRank()], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layers_row_is_the_same_in_any_number_of_rows(
    kind: type[nn.RNNBase], perturbation: Perturbation, dtype: torch.dtype
) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(8, 16, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    torch.manual_seed(0)
    reader, size = Reader().to(dtype), 64
    weights = {name: value.detach() for name, value in reader.named_parameters()}
    noise = perturbation.sample(weights, size, torch.Generator().manual_seed(0))
    population, x, members = (
        Population(reader, noise, 0.1),
        randn(size, 7, 8, dtype=dtype),
        torch.arange(size),
    )
    whole = population(x, members=members)
    for part in (slice(0, 1), slice(7, 9), slice(30, 33), slice(5, 22), slice(30, 61)):
        assert torch.equal(population(x[part], members=members[part]), whole[part])
