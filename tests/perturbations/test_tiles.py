"""Tiles of the weighted sum: they add up, and their bits depend on nothing but the noise and the weights."""

import copy
import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from es_flipout.perturbations import (
    Flipout,
    Independent,
    LowRank,
    Perturbation,
    PopulationNoise,
    compute_here,
)
from es_flipout.perturbations.tiles import TILE_VALUES, cut, joined, tiles_of
from es_flipout.population import NoiseOrigin

P = 8


class Large(nn.Module):
    """A table with a pinned entry, a kernel and a vector of several tiles each, and a matrix of one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 100_000, padding_idx=3)
        self.kernel = nn.Parameter(torch.empty(3, 2, 200, 300))
        self.vector = nn.Parameter(torch.empty(300_000))
        self.small = nn.Parameter(torch.empty(4, 3))
        self.to(dtype)


POLICIES = {dtype: Large(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 2e-2}
every_dtype = pytest.mark.parametrize("dtype", POLICIES, ids=str)
every_family = pytest.mark.parametrize(
    ("perturbation", "antithetic"),
    [
        (family, antithetic)
        for family in (Flipout(), Flipout(2, "gaussian"), LowRank(2), Independent())
        for antithetic in (True, False)
    ],
    ids=str,
)


def origin_of(perturbation: Perturbation, antithetic: bool) -> NoiseOrigin:
    return NoiseOrigin(perturbation, P, antithetic, seed=3, generation=2, block=1)


def weights_of(seed: int = 1) -> Tensor:
    return torch.randn(P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_bits(ones: list[Tensor], others: list[Tensor]) -> None:
    assert len(ones) == len(others)
    assert all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@every_family
@every_dtype
def test_tiles_add_up_to_the_sum_over_members(
    perturbation: Perturbation, antithetic: bool, dtype: torch.dtype
) -> None:
    policy, weights = POLICIES[dtype], weights_of()
    noise = origin_of(perturbation, antithetic).draw(policy)
    expected = {
        name: torch.zeros_like(value, dtype=torch.float64) for name, value in policy.named_parameters()
    }
    for member, weight in enumerate(weights.tolist()):
        for name, eps in noise.member(member).items():
            expected[name] += weight * eps.double()
    tiles = noise.tiles(weights)
    values = compute_here(tiles)
    for tile, value in zip(tiles, values, strict=True):
        assert (value.shape, value.dtype, value.device) == (tile.shape, tile.dtype, tile.device)
        assert value.dtype == dtype
    total = noise.assembled(iter(values))
    assert total.keys() == expected.keys()
    for name, value in total.items():
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(value.double(), expected[name], rtol=tolerance, atol=tolerance)
    assert bool((total["table.weight"][3] == 0).all())


@every_family
@every_dtype
def test_values_have_the_same_bits_in_any_order_and_from_any_draw(
    perturbation: Perturbation, antithetic: bool, dtype: torch.dtype
) -> None:
    policy, weights, origin = POLICIES[dtype], weights_of(), origin_of(perturbation, antithetic)
    values = compute_here(origin.draw(policy).tiles(weights))
    backwards = compute_here(origin.draw(policy).tiles(weights)[::-1])[::-1]
    assert_same_bits(values, backwards)
    # Two processes, each with a policy and a draw of its own, compute every other tile.
    draws = [origin.draw(policy), origin.draw(copy.deepcopy(policy))]
    draws[0].rows(torch.arange(P), 1.0)  # one of them has played, and may have kept its members
    tiles = [noise.tiles(weights) for noise in draws]
    shared = [tiles[index % 2][index].compute() for index in range(len(values))]
    assert_same_bits(values, shared)


@pytest.mark.parametrize(
    ("perturbation", "parts"),
    [
        # Kernel: 3 rows of 120,000, two at a time; the small matrix; table: 5 rows of 100,000; the vector.
        (Flipout(), [True, True, False, True, True, True, True, True]),
        (LowRank(), [True, True, False, True, True, True, True, True]),
        # 1,160,012 weights by 32,768
        (Independent(), [True] * 36),
    ],
    ids=str,
)
def test_a_tile_says_whether_its_tensor_was_cut(perturbation: Perturbation, parts: list[bool]) -> None:
    tiles = origin_of(perturbation, True).draw(POLICIES[torch.float32]).tiles(weights_of())
    assert [tile.is_part for tile in tiles] == parts


class TestASingleTile:
    """Has the bits of the formula for the whole weight."""

    weights = torch.randn(4, generator=torch.Generator().manual_seed(1))

    def noise(self, perturbation: Perturbation) -> PopulationNoise:
        parameters = {"weight": torch.empty(17, 348), "bias": torch.empty(17)}
        return perturbation.sample(parameters, 4, torch.Generator().manual_seed(0), antithetic=False)

    def test_of_flipout(self) -> None:
        noise = self.noise(Flipout(2, "gaussian"))
        table, dense = noise.tables
        signs = table.split(table.values)
        R, S = (signs[f"{dim} weight"].float().view(2, 2, -1) for dim in (0, 1))
        bases, u = table.bases["weight"], self.weights.view(2, 2, 1)
        expected = torch.zeros(17, 348)
        for k in range(2):
            expected.addcmul_(bases[k], (u[k] * R[k]).T @ S[k])  # as `+=` would, but rounded once
        total = noise.weighted_sum(self.weights)
        assert torch.equal(total["weight"], expected)
        assert torch.equal(total["bias"], self.weights @ dense.values)

    def test_of_low_rank(self) -> None:
        noise = self.noise(LowRank(3))
        factors = noise.tables[0].split(noise.tables[0].values)
        left = (self.weights.view(4, 1, 1) * factors["left weight"]).flatten(0, 1)
        expected = left.T @ factors["right weight"].flatten(0, 1)
        assert torch.equal(noise.weighted_sum(self.weights)["weight"], expected)

    def test_of_independent(self) -> None:
        # The seed comes from the generator of the draw; a direction has the next.
        seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
        expected = torch.zeros(17 * 348 + 17)
        for direction, weight in enumerate(self.weights.tolist()):
            row = torch.randn(len(expected), generator=torch.Generator().manual_seed(seed + direction))
            expected.add_(row, alpha=weight)
        total = self.noise(Independent()).weighted_sum(self.weights)
        assert torch.equal(torch.cat([total["weight"].flatten(), total["bias"]]), expected)


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    most=st.integers(1, 30),
)
def test_a_cut_covers_every_row_once_in_order(shape: tuple[int, ...], most: int) -> None:
    parts, values_per_row = cut(shape, most), max(1, math.prod(shape[1:]))
    sizes = [part.stop - part.start for part in parts]
    assert [part.start for part in parts] == [0, *accumulate(sizes)][:-1]
    assert sum(sizes) == shape[0]
    assert all(size == 1 or size * values_per_row <= most for size in sizes)
    # As few as can be: one more row would be too much.
    assert all((size + 1) * values_per_row > most for size in sizes[:-1])


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    most=st.integers(1, 30),
)
def test_tiles_join_to_the_tensor(shape: tuple[int, ...], most: int) -> None:
    tensor = torch.arange(float(math.prod(shape))).view(shape)
    tiles = tiles_of(shape, torch.float64, tensor.device, tensor.__getitem__, most)
    values = iter([*compute_here(tiles), torch.tensor(7.0)])
    assert torch.equal(joined(values, shape, most), tensor.double())
    assert next(values) == 7  # which is the next tensor's
    assert {tile.is_part for tile in tiles} == {len(tiles) > 1}


def test_the_largest_layers_of_the_shipped_policies_are_one_tile() -> None:
    for shape in ((64, 348), (17, 348), (256, 348)):
        assert len(cut(shape, TILE_VALUES)) == 1
