"""Running moments against numpy on all rows together, and the module that standardizes with them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from es_flipout.normalization import ObservationNormalizer, RunningStatistics

ROWS = torch.tensor([[1.0, 10.0], [2.0, 10.0], [6.0, 40.0]])
# Means (3, 20); squared deviations 4 + 1 + 9 = 14 and 100 + 100 + 400 = 600.

# Chunks of rows of one width, some empty, off center by up to a thousand deviations.
chunks = st.builds(
    lambda sizes, width, offset, seed: [
        torch.randn(size, width, dtype=torch.float64, generator=generator) * 3.0 + offset
        for generator in [torch.Generator().manual_seed(seed)]
        for size in sizes
    ],
    sizes=st.lists(st.integers(0, 8), min_size=1, max_size=5),
    width=st.integers(1, 4),
    offset=st.sampled_from([0.0, -7.5, 3000.0]),
    seed=st.integers(0, 10_000),
)


def statistics_of(*parts: Tensor, width: int = 2) -> RunningStatistics:
    statistics = RunningStatistics(width)
    for part in parts:
        statistics.update(part)
    return statistics


def assert_equal(one: RunningStatistics, other: RunningStatistics) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.m2, other.m2, rtol=1e-8, atol=1e-8)


def assert_moments_of(statistics: RunningStatistics, rows: np.ndarray) -> None:
    assert statistics.count == len(rows)
    if len(rows) == 0:
        return
    np.testing.assert_allclose(statistics.mean.numpy(), rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.m2.numpy() / len(rows), rows.var(0), rtol=1e-8, atol=1e-8)
    expected = rows.var(0) if len(rows) > 1 else np.ones(rows.shape[1])
    np.testing.assert_allclose(statistics.variance.numpy(), expected, rtol=1e-8, atol=1e-8)


class TestMoments:
    def test_by_hand(self) -> None:
        statistics = statistics_of(ROWS)
        assert statistics.count == 3
        assert statistics.mean.tolist() == [3.0, 20.0]
        assert statistics.m2.tolist() == [14.0, 600.0]
        torch.testing.assert_close(statistics.variance, torch.tensor([14.0 / 3, 200.0], dtype=torch.float64))

    @settings(deadline=None, max_examples=60)
    @given(parts=chunks)
    def test_updates_match_numpy_on_the_concatenation(self, parts: list[Tensor]) -> None:
        statistics = statistics_of(*parts, width=parts[0].shape[1])
        assert_moments_of(statistics, torch.cat(parts).numpy())

    @settings(deadline=None, max_examples=60)
    @given(parts=chunks)
    def test_merging_matches_one_update_with_everything(self, parts: list[Tensor]) -> None:
        width = parts[0].shape[1]
        merged = RunningStatistics(width)
        for part in parts:
            merged.merge(statistics_of(part, width=width))
        assert_equal(merged, statistics_of(torch.cat(parts), width=width))

    @settings(deadline=None, max_examples=60)
    @given(parts=chunks, seed=st.integers(0, 10_000))
    def test_masked_rows_leave_no_trace(self, parts: list[Tensor], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        statistics = RunningStatistics(parts[0].shape[1])
        kept = []
        for part in parts:
            mask = torch.rand(len(part), generator=generator) < 0.6
            kept.append(part[mask])
            statistics.update(torch.where(mask.unsqueeze(1), part, torch.nan), mask)
        assert_moments_of(statistics, torch.cat(kept).numpy())

    def test_a_mask_without_rows_changes_nothing(self) -> None:
        statistics = statistics_of(ROWS)
        statistics.update(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.bool))
        assert_equal(statistics, statistics_of(ROWS))

    def test_float32_rows_are_summed_in_float64(self) -> None:
        # 100 ± 0.01: the variance of 1e-4 is below the rounding error of a squared float32 row, 1e4 x 6e-8.
        rows = torch.tensor([[99.99], [100.01]]).repeat(50_000, 1)
        statistics = statistics_of(*rows.chunk(10), width=1)
        assert statistics.mean.dtype == torch.float64
        np.testing.assert_allclose(statistics.variance, rows.double().var(unbiased=False), rtol=1e-9)

    def test_constant_features_have_no_variance(self) -> None:
        statistics = statistics_of(torch.full((5, 2), 7.0), torch.full((3, 2), 7.0))
        assert statistics.variance.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("rows", [0, 1])
    def test_variance_is_one_before_two_rows(self, rows: int) -> None:
        assert statistics_of(ROWS[:rows]).variance.tolist() == [1.0, 1.0]

    def test_merging_nothing_into_nothing_stays_finite(self) -> None:
        merged = RunningStatistics(2)
        merged.merge(RunningStatistics(2))
        assert_equal(merged, RunningStatistics(2))

    @pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (3, 2, 1)], ids=str)
    def test_rows_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"rows must be \[N, 2\]"):
            RunningStatistics(2).update(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(2,), (1,), (3, 1), (3, 2), ()], ids=str)
    def test_a_mask_of_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        statistics = RunningStatistics(2)
        with pytest.raises(ValueError, match=r"mask must be bool \[3\]"):
            statistics.update(ROWS, torch.ones(shape, dtype=torch.bool))
        assert statistics.count == 0


class TestNormalizer:
    def normalizer(self, *parts: Tensor, clip: float = 10.0) -> ObservationNormalizer:
        normalizer = ObservationNormalizer(2, clip)
        normalizer.merge(statistics_of(*parts))
        return normalizer

    def test_standardizes_by_the_moments_of_what_it_has_seen(self) -> None:
        rows = self.normalizer(ROWS)(ROWS)
        expected = (ROWS.numpy() - ROWS.numpy().mean(0)) / ROWS.numpy().std(0)
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-6)

    def test_merges_add_up(self) -> None:
        normalizer = self.normalizer(ROWS[:1])
        normalizer.merge(statistics_of(ROWS[1:]))
        torch.testing.assert_close(normalizer(ROWS), self.normalizer(ROWS)(ROWS))

    def test_changes_nothing_but_the_range_before_it_has_seen_anything(self) -> None:
        rows = torch.tensor([[0.5, -3.0], [40.0, -40.0]])
        expected = torch.tensor([[0.5, -3.0], [10.0, -10.0]])
        assert torch.equal(ObservationNormalizer(2)(rows), expected)

    def test_is_frozen_until_merge(self) -> None:
        normalizer = self.normalizer(ROWS).train()
        before = {name: value.clone() for name, value in normalizer.state_dict().items()}
        first = normalizer(ROWS)
        normalizer(1000.0 * ROWS)
        taken = normalizer.statistics()
        taken.update(1000.0 * ROWS)
        assert torch.equal(normalizer(ROWS), first)
        assert all(torch.equal(value, before[name]) for name, value in normalizer.state_dict().items())
        normalizer.merge(statistics_of(1000.0 * ROWS))
        assert not torch.equal(normalizer(ROWS), first)

    def test_what_was_merged_does_not_change_with_the_normalizer(self) -> None:
        seen = statistics_of(ROWS)
        normalizer = ObservationNormalizer(2)
        normalizer.merge(seen)
        normalizer.merge(seen)
        assert normalizer.count == 6
        assert_equal(seen, statistics_of(ROWS))

    def test_the_observation_is_not_written_to(self) -> None:
        rows = ROWS.clone()
        self.normalizer(ROWS)(rows)
        assert torch.equal(rows, ROWS)

    def test_clips_at_the_bound_on_both_sides(self) -> None:
        rows = self.normalizer(ROWS, clip=0.25)(torch.tensor([[1e6, -1e6], [3.0, 20.0]]))
        assert rows.tolist() == [[0.25, -0.25], [0.0, 0.0]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.1, -273.15])
    def test_constant_features_stay_at_zero(self, value: float, dtype: torch.dtype) -> None:
        rows = torch.full((100, 2), value, dtype=dtype)
        standardized = self.normalizer(*rows.split([7, 31, 62]))(rows)
        assert (standardized.abs() < 1e-6).all()

    def test_a_constant_feature_that_moves_is_clipped(self) -> None:
        normalizer = self.normalizer(torch.full((100, 2), 5.0))
        assert normalizer(torch.tensor([[5.01, 4.99]])).tolist() == [[10.0, -10.0]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 4, 2)], ids=str)
    def test_keeps_shape_and_dtype(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        rows = self.normalizer(ROWS)(torch.ones(shape, dtype=dtype))
        assert rows.shape == shape
        assert rows.dtype == dtype

    # The normalizer caches mean and scale; whatever changes the moments must invalidate them.

    def used(self) -> ObservationNormalizer:
        normalizer = self.normalizer(ROWS)
        normalizer(ROWS)
        normalizer(ROWS.double())
        normalizer(ROWS)
        return normalizer

    def test_a_merge_takes_effect_at_once(self) -> None:
        normalizer = self.used()
        normalizer.merge(statistics_of(5.0 * ROWS))
        assert torch.equal(normalizer(ROWS), self.normalizer(ROWS, 5.0 * ROWS)(ROWS))

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_loaded_state_takes_effect_at_once(self, assign: bool, inside: bool) -> None:
        normalizer, other = self.used(), self.normalizer(5.0 * ROWS)
        if inside:  # as part of a policy
            torch.nn.Sequential(normalizer).load_state_dict(
                torch.nn.Sequential(other).state_dict(), assign=assign
            )
        else:
            normalizer.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(normalizer(ROWS), other(ROWS))

    def test_a_cast_takes_effect_at_once(self) -> None:
        normalizer = self.used().to(torch.float32)
        fresh = self.normalizer(ROWS).to(torch.float32)
        rows = ROWS.double() / 3
        assert torch.equal(normalizer(rows), fresh(rows))
        assert torch.equal(normalizer.double()(rows), fresh.double()(rows))
        assert normalizer.to("meta")(rows.to("meta")).is_meta

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_dtype_of_earlier_observations_does_not_matter(self, dtype: torch.dtype) -> None:
        rows = ROWS.to(dtype) / 3
        assert torch.equal(self.used()(rows), self.normalizer(ROWS)(rows))
