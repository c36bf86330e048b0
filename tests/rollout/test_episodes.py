"""The table of episodes: fitness, faults, and moments that do not depend on who played what, or when."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from es_flipout.rollout import Episodes
from es_flipout.rollout.episodes import NOT_FINITE

EPISODES = 23
"""Five whole blocks of four, and one that is smaller."""


def observations(offset: float = 0.0) -> list[np.ndarray]:
    """Returns what was observed in each episode, [steps, 3], far from alike."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=(length, 3)) + rng.normal() + offset for length in rng.integers(1, 9, EPISODES)]


def sums_of(rows: np.ndarray) -> np.ndarray:
    """Returns the first observation, and the sums of the deviations from it and of their squares, [3, O]."""
    deviations = rows - rows[0]
    return np.stack([rows[0], deviations.sum(axis=0), np.square(deviations).sum(axis=0)])


def record(table: Episodes, rows: np.ndarray, seen: list[np.ndarray]) -> None:
    """Records that episodes ended, whose observations are `seen[id]`."""
    of_rows = [seen[identity] for identity in table.ids[rows]]
    table.observation_size = 3
    returns, lengths = (np.array([f(each) for each in of_rows]) for f in (lambda x: float(x.sum()), len))
    table.record(rows, returns, lengths, np.stack([sums_of(each) for each in of_rows], axis=1))


def table_of(count: int = EPISODES, **options) -> Episodes:
    return Episodes.of_population(range(count), **options)


def played_in_order(seen: list[np.ndarray]) -> Episodes:
    table = table_of(len(seen))
    record(table, np.arange(len(seen)), seen)
    return table


def assert_same(one: Episodes, other: Episodes) -> None:
    """Asserts that two tables say the same to the last bit."""
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    assert one.faults == other.faults
    for name in ("count", "mean", "m2"):
        assert torch.equal(getattr(one.observations(), name), getattr(other.observations(), name)), name
    assert (one.unplayed, one.spent_steps) == (other.unplayed, other.spent_steps)


@pytest.mark.parametrize("offset", [0.0, -7.5, 3000.0])
def test_moments_are_those_of_all_observations(offset):
    seen = observations(offset)
    moments, rows = played_in_order(seen).observations(), np.concatenate(seen)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-9)


def test_moments_by_hand():
    # 4, 5, 9 around 4: deviations 0, 1, 5. 20 alone. Mean 38 / 4, squares 122 + 400 - 38² / 4 = 161.
    table = table_of(2)
    table.observation_size = 1
    table.record(np.array([1]), np.zeros(1), np.array([1]), np.array([[[20.0]], [[0.0]], [[0.0]]]))
    table.record(np.array([0]), np.zeros(1), np.array([3]), np.array([[[4.0]], [[6.0]], [[26.0]]]))
    moments = table.observations()
    assert (moments.count, moments.mean, moments.m2) == (4, 9.5, 161)


@st.composite
def schedules(draw):
    """Draws who plays: shares of all ids, and for each the order in which its episodes end, in groups."""
    order = draw(st.permutations(range(EPISODES)))
    cuts = sorted(draw(st.sets(st.integers(1, EPISODES - 1))))
    shares = np.split(np.array(order), cuts)
    return [(share, draw(st.permutations(range(len(share)))), draw(st.integers(1, 5))) for share in shares]


@given(schedules(), st.integers(1, 7))
def test_neither_shares_nor_the_order_of_ends_change_a_bit(schedule, block_size):
    seen = observations()
    expected = table_of(block_size=block_size)
    record(expected, np.arange(EPISODES), seen)
    table = table_of(block_size=block_size)
    for ids, order, together in schedule:
        share = pickle.loads(pickle.dumps(table.take(ids)))  # as it goes to another process, and back
        for first in range(0, len(order), together):
            record(share, np.array(order[first : first + together]), seen)
        assert share.unplayed == 0
        table.put(ids, pickle.loads(pickle.dumps(share)))
    assert_same(table, expected)


def test_a_share_knows_what_to_play():
    table = Episodes.of_population([[5, 6], [7, 8], [9, 10]], limit=30)
    share = table.take(np.array([1, 4]))
    assert (share.member.tolist(), share.reset_seed.tolist(), share.ids.tolist()) == ([0, 2], [6, 9], [1, 4])
    assert share.limit == 30
    assert share.unplayed == len(share) == 2
    assert table.num_members == 3


def test_what_failed_is_told_and_counts_nothing():
    seen = observations()
    table = table_of()
    table.observation_size = 3
    sums = np.stack([sums_of(each) for each in seen], axis=1)
    sums[2, 4, 1] = np.inf  # the squares of one feature alone
    returns, lengths = np.arange(float(EPISODES)), np.array([len(each) for each in seen])
    returns[[2, 3]] = np.nan, -np.inf
    table.record(np.arange(EPISODES), returns, lengths, sums, {7: "out of paint"})
    assert table.faults == {2: NOT_FINITE, 3: NOT_FINITE, 4: NOT_FINITE, 7: "out of paint"}
    assert table.failures == {NOT_FINITE: 3, "out of paint": 1}
    assert table.fitness.isnan().nonzero().flatten().tolist() == [2, 3, 4, 7]
    kept = [each for row, each in enumerate(seen) if row not in table.faults]
    assert table.observations().count == sum(map(len, kept))
    np.testing.assert_allclose(table.observations().mean, np.concatenate(kept).mean(axis=0), rtol=1e-13)
    assert table.env_steps == lengths.sum()


def test_moments_of_nothing_are_empty():
    table = table_of(3)
    table.observation_size = 4
    table.record(
        np.arange(3), np.full(3, np.nan), np.zeros(3, np.int64), faults=dict.fromkeys(range(3), "no")
    )
    assert table.observations().count == 0
    assert table.observations().mean.tolist() == [0.0] * 4
    assert table_of(3).observations().mean.shape == (0,)


def test_moments_must_be_given_if_they_are_kept():
    table = table_of(2)
    table.observation_size = 4
    with pytest.raises(ValueError, match="moments of the observations are missing"):
        table.record(np.arange(2), np.zeros(2), np.ones(2, np.int64))


def test_the_fitness_is_the_mean_return_of_a_members_episodes():
    table = Episodes.of_population([[0, 1], [2, 3]])
    table.record(np.arange(4), np.array([10.0, 4.0, np.nan, 1.0]), np.array([4, 2, 1, 1]))
    assert table.fitness[0] == 7
    assert table.fitness_without(0.5)[0] == (8 + 3) / 2
    assert table.fitness[1].isnan()


def test_tables_of_several_populations_make_one():
    seen = observations()
    first, second = played_in_order(seen[:7]), played_in_order(seen[7:])
    first.spent_steps, second.spent_steps = 50, 70
    second.faults[0] = "broke"
    both = Episodes.concatenated([first, second])
    assert both.num_members == EPISODES
    assert both.fitness.tolist() == [*first.fitness.tolist(), *second.fitness.tolist()]
    assert both.spent_steps == 120
    assert both.live_share == sum(map(len, seen)) / 120
    assert both.faults == {7: "broke"}
    rows = np.concatenate(seen)
    np.testing.assert_allclose(both.observations().mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(both.observations().variance, rows.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], r"got \[0\]"),
        ([[], []], r"got \[2, 0\]"),
        ([[[1]]], r"got \[1, 1, 1\]"),
        ([[1, 2], [3]], "every member needs the same number of reset seeds"),
    ],
)
def test_seeds_that_make_no_table_are_refused(seeds, message):
    with pytest.raises(ValueError, match=message):
        Episodes.of_population(seeds)
