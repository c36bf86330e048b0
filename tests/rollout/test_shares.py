"""Shares: everybody gets work, everything is played, and what kills its workers is found alone."""

from __future__ import annotations

import numpy as np
import pytest

from es_flipout.rollout import Episodes
from es_flipout.rollout.shares import MAX_DEATHS, Shares

DIED = "the worker process died"


def play(share: Episodes) -> Episodes:
    count = len(share)
    share.record(np.arange(count), share.reset_seed.astype(float), np.ones(count, np.int64))
    return share


def handed_out(episodes: int, num_envs: list[int], block_size: int = 4) -> list[list[Episodes]]:
    """Returns what each of some workers is given before any of them answers."""
    shares = Shares(Episodes.of_population(range(episodes), block_size=block_size), len(num_envs))
    hands: list[list[Episodes]] = [[] for _ in num_envs]
    for hand, envs in zip(hands, num_envs, strict=True):
        while (share := shares.next(hand, envs)) is not None:
            hand.append(share)
    return hands


@pytest.mark.parametrize(("episodes", "envs"), [(64, 32), (256, 128), (16, 8), (40, 20)])
def test_if_all_episodes_find_an_env_all_workers_get_as_many(episodes, envs):
    hands = handed_out(episodes, [envs, envs])
    assert [sum(map(len, hand)) for hand in hands] == [episodes // 2] * 2


def test_nobody_gets_more_than_fits_if_others_would_go_without():
    hands = handed_out(56, [20, 20])
    assert [sum(map(len, hand)) for hand in hands] == [20, 20]


def test_while_there_is_enough_for_all_a_worker_has_a_share_in_advance():
    (first, second) = handed_out(1000, [20, 20])
    assert 20 < sum(map(len, first)) <= 20 + 1000 // 8 + 4
    assert sum(map(len, second)) > 20


@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("num_envs", [[1], [1, 1, 1], [5, 8], [100, 3]])
def test_everything_is_played_once(num_envs, block_size):
    table = Episodes.of_population(
        [[2 * member, 2 * member + 1] for member in range(37)], block_size=block_size
    )
    shares, rng = Shares(table, len(num_envs)), np.random.default_rng(0)
    hands: list[list[Episodes]] = [[] for _ in num_envs]
    played = []
    while not shares.done:
        for hand, envs in zip(hands, num_envs, strict=True):
            while (share := shares.next(hand, envs)) is not None:
                hand.append(share)
        busy = [hand for hand in hands if hand]
        share = busy[rng.integers(len(busy))].pop(0)
        played += share.ids.tolist()
        shares.put(play(share))
    assert sorted(played) == list(range(74))
    assert table.returns.tolist() == list(range(74))


@pytest.mark.parametrize(("envs", "block_size"), [(1, 1), (1, 2), (16, 4), (64, 4)])
def test_a_member_that_kills_its_workers_fails_alone(envs, block_size):
    table = Episodes.of_population(
        [[2 * member, 2 * member + 1] for member in range(20)], block_size=block_size
    )
    shares, deaths = Shares(table, 1), 0
    while not shares.done:
        hand: list[Episodes] = []
        while (share := shares.next(hand, envs)) is not None:
            hand.append(share)
        if any(7 in share.member for share in hand):
            deaths += 1
            for share in hand:
                shares.lose(share, DIED)
        else:
            for share in hand:
                shares.put(play(share))
    assert {row // 2 for row in table.faults} == {7}
    assert set(table.faults.values()) == {DIED}
    assert MAX_DEATHS <= deaths <= 2 * MAX_DEATHS + 8


def test_what_nobody_had_begun_with_goes_out_again_in_its_blocks():
    table = Episodes.of_population(range(12), block_size=4)
    shares = Shares(table, 1)
    first = shares.next([], 12)
    shares.give_back(first)
    again = shares.next([], 12)
    assert again.ids.tolist() == first.ids.tolist()
