"""Fitness shaping: numbers worked by hand, and the identities that hold for any returns."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from es_flipout.fitness import SHAPINGS, Shaping, centered_ranks, nes, raw, standardized

NAN = math.nan

every_shaping = pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS.keys())
rank_based = pytest.mark.parametrize("shaping", [centered_ranks, nes])

# Small integers, so that ties are common and every transform below is exact in float64.
returns = st.lists(st.integers(-20, 20), min_size=2, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def shaped(shaping: Shaping, *fitness: float) -> list[float]:
    return shaping(torch.tensor(fitness, dtype=torch.float64)).tolist()


class TestCenteredRanks:
    def test_by_hand(self) -> None:
        # Ranks from worst: 10 -> 0, 20 -> 1, 30 -> 2; divided by P - 1 = 2, minus 1/2.
        assert shaped(centered_ranks, 10, 30, 20) == [-0.5, 0.5, 0.0]

    def test_ties_share_the_mean_of_their_ranks(self) -> None:
        # Ranks 0, (1 + 2 + 3) / 3 = 2 and 4, divided by 4, minus 1/2.
        assert shaped(centered_ranks, 7, 5, 9, 7, 7) == [0.0, -0.5, 0.5, 0.0, 0.0]

    def test_nan_is_worse_than_everything(self) -> None:
        # Two NaN share ranks 0 and 1; -1e9 and 3 have ranks 2 and 3: (0.5, 2, 3) / 3 - 1/2.
        result = shaped(centered_ranks, NAN, 3, -1e9, NAN)
        assert result == pytest.approx([-1 / 3, 1 / 2, 1 / 6, -1 / 3])

    def test_infinite_returns_rank_worst(self) -> None:
        # Both share ranks 0 and 1 of 3: 0.5 / 3 - 1/2.
        assert shaped(centered_ranks, math.inf, 0, -math.inf, -1) == pytest.approx(
            [-1 / 3, 0.5, -1 / 3, 1 / 6]
        )

    def test_a_single_member_has_utility_zero(self) -> None:
        assert shaped(centered_ranks, 3.0) == [0.0]


class TestNes:
    def test_by_hand(self) -> None:
        # P = 4: ln 3 - ln i for i = 1..4 is 1.0986, 0.4055, 0 and (below zero, so) 0, which sum to
        # 1.5041: 0.7304, 0.2696, 0 and 0, each minus 1/4.
        assert shaped(nes, 1, 4, 3, 2) == pytest.approx([-0.25, 0.48042, 0.01958, -0.25], abs=1e-5)

    def test_ties_share_the_mean_of_their_utilities(self) -> None:
        # As above; the two best share (0.7304 + 0.2696) / 2 - 1/4.
        assert shaped(nes, 1, 4, 4, 2) == pytest.approx([-0.25, 0.25, 0.25, -0.25])

    def test_nan_is_worse_than_everything(self) -> None:
        # P = 2: ln 2 - ln i is ln 2 and 0, so utilities 1 and 0, each minus 1/2.
        assert shaped(nes, NAN, -1e9) == pytest.approx([-0.5, 0.5])


class TestRaw:
    def test_by_hand(self) -> None:
        assert shaped(raw, 1, 2, 6) == [-2.0, -1.0, 3.0]

    def test_nan_counts_as_the_worst_of_the_others(self) -> None:
        # 2, 2 and 8 have the mean 4.
        assert shaped(raw, NAN, 2, 8) == [-2.0, -2.0, 4.0]


class TestStandardized:
    def test_by_hand(self) -> None:
        # Mean 5, squared deviations 9, 1, 1, 9: standard deviation sqrt(20 / 4) = sqrt 5.
        expected = [value / math.sqrt(5) for value in (-3, -1, 1, 3)]
        assert shaped(standardized, 2, 4, 6, 8) == pytest.approx(expected)

    def test_nan_counts_as_the_worst_of_the_others(self) -> None:
        # 1, 1, 4, 4, so the NaN is gone: (-1, -1, 1, 1).
        assert shaped(standardized, NAN, 1, 4, 4) == [-1.0, -1.0, 1.0, 1.0]


@every_shaping
class TestEveryShaping:
    @pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e30, NAN])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [2, 3, 7, 100])
    def test_equal_returns_give_exactly_zero(
        self, shaping: Shaping, size: int, dtype: torch.dtype, value: float
    ) -> None:
        utilities = shaping(torch.full((size,), value, dtype=dtype))
        assert utilities.tolist() == [0.0] * size

    @settings(deadline=None, max_examples=40)
    @given(fitness=returns)
    def test_sums_to_zero(self, shaping: Shaping, fitness: Tensor) -> None:
        assert abs(float(shaping(fitness).sum())) < 1e-9

    @settings(deadline=None, max_examples=40)
    @given(fitness=returns)
    def test_a_higher_return_never_gets_a_lower_utility(self, shaping: Shaping, fitness: Tensor) -> None:
        utilities = shaping(fitness)
        better = fitness.unsqueeze(1) > fitness
        equal = fitness.unsqueeze(1) == fitness
        difference = utilities.unsqueeze(1) - utilities
        assert (difference[better] > -1e-12).all()  # equal utilities may differ by rounding of the mean
        assert (difference[equal] == 0).all()
        if better.any():
            assert utilities[fitness.argmax()] > 0 > utilities[fitness.argmin()]

    @settings(deadline=None, max_examples=40)
    @given(fitness=returns, seed=st.integers(0, 1000))
    def test_the_order_of_members_does_not_matter(self, shaping: Shaping, fitness: Tensor, seed: int) -> None:
        order = torch.randperm(len(fitness), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(shaping(fitness[order]), shaping(fitness)[order], rtol=0, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(fitness=returns, shift=st.integers(-100, 100))
    def test_a_constant_in_every_return_does_not_matter(
        self, shaping: Shaping, fitness: Tensor, shift: int
    ) -> None:
        torch.testing.assert_close(shaping(fitness + shift), shaping(fitness), rtol=0, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(fitness=returns, index=st.integers(0, 11))
    def test_nan_never_beats_another_member(self, shaping: Shaping, fitness: Tensor, index: int) -> None:
        fitness[index % len(fitness)] = NAN
        utilities = shaping(fitness)
        assert utilities.isfinite().all()
        assert utilities[index % len(fitness)] <= utilities.min() + 1e-12

    def test_returns_are_compared_in_full_precision(self, shaping: Shaping) -> None:
        worse, better = shaped(shaping, 1e9, 1e9 + 1)  # the same number in float32
        assert worse < 0 < better

    def test_float32_returns_give_float64_utilities(self, shaping: Shaping) -> None:
        fitness = torch.tensor([1.0, 4.0, 2.5])
        utilities = shaping(fitness)
        assert utilities.dtype == torch.float64
        torch.testing.assert_close(utilities, shaping(fitness.double()))

    def test_the_returns_are_not_written_to(self, shaping: Shaping) -> None:
        fitness = torch.tensor([3.0, NAN, 1.0], dtype=torch.float64)
        shaping(fitness)
        torch.testing.assert_close(
            fitness, torch.tensor([3.0, NAN, 1.0], dtype=torch.float64), rtol=0, atol=0, equal_nan=True
        )


@rank_based
@pytest.mark.parametrize(
    "transform",
    [lambda x: x**3, lambda x: 5 * x - 3, lambda x: torch.exp(x), lambda x: torch.atan(x / 50)],
    ids=["cube", "affine", "exp", "atan"],
)
@settings(deadline=None, max_examples=30)
@given(fitness=returns)
def test_ranks_ignore_a_monotone_transform(
    shaping: Shaping, transform: Callable[[Tensor], Tensor], fitness: Tensor
) -> None:
    assert torch.equal(shaping(transform(fitness)), shaping(fitness))


@settings(deadline=None, max_examples=40)
@given(fitness=returns, scale=st.sampled_from([0.01, 3.0, 1e6]))
def test_standardized_ignores_the_unit_of_the_return(fitness: Tensor, scale: float) -> None:
    torch.testing.assert_close(standardized(scale * fitness), standardized(fitness), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(fitness=returns)
def test_centered_ranks_are_spread_evenly(fitness: Tensor) -> None:
    # Without ties (a member's index breaks them) the utilities are -1/2, ..., 1/2 in equal steps.
    distinct = fitness * 100 + torch.arange(len(fitness))
    expected = torch.linspace(-0.5, 0.5, len(fitness), dtype=torch.float64)
    torch.testing.assert_close(centered_ranks(distinct).sort().values, expected)
