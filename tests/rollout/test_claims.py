"""Claims: every episode goes to one player, in whole blocks, in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from es_flipout.rollout import Episodes
from es_flipout.rollout.claims import Claims


def counter():
    total = 0

    def add(number):
        nonlocal total
        total += number
        return total

    return add


@pytest.mark.parametrize("block_size", [1, 4, 7, 100])
@pytest.mark.parametrize("players", [1, 2, 5])
def test_every_episode_is_claimed_once(block_size, players):
    episodes, add = Episodes.of_population(range(41), block_size=block_size), counter()
    claims = [Claims(episodes, add=add, num_players=players) for _ in range(players)]
    sizes, claimed = itertools.cycle([1, 3, 8, 2]), []
    while any(each.num_waiting for each in claims):
        for each, size in zip(claims, sizes, strict=False):
            rows = each.claim(size)
            assert len(rows) == 0 or rows[0] % block_size == 0
            assert len(rows) >= min(size, each.num_waiting) or not each.num_waiting
            claimed += rows.tolist()
    assert claimed == list(range(41))
    assert all(len(each.claim(3)) == 0 for each in claims)


def test_a_player_learns_from_each_claim_what_others_have_left():
    episodes, add = Episodes.of_population(range(40)), counter()
    one, other = Claims(episodes, add=add, num_players=2), Claims(episodes, add=add, num_players=2)
    assert one.claim(16).tolist() == list(range(16))
    assert other.num_waiting == 40
    assert other.claim(1).tolist() == [16, 17, 18, 19]
    assert (one.num_waiting, other.num_waiting) == (24, 20)


def test_a_share_in_advance_leaves_as_much_for_everyone():
    episodes = Episodes.of_population(range(400))
    assert Claims(episodes).fair_share() == 100
    assert Claims(episodes).fair_share(0, 2) == 50
    assert Claims(episodes, num_players=5).fair_share() == 20
    assert Claims(episodes, num_players=5).fair_share(20, 2) == 11  # of 420


def test_episodes_are_scarce_if_all_find_an_env():
    episodes = Episodes.of_population(range(400))
    assert Claims(episodes, num_players=4).is_scarce(100)
    assert not Claims(episodes, num_players=4).is_scarce(99)
    assert not Claims(episodes, num_players=4).is_scarce(100, 1)


def test_a_table_of_no_episodes():
    episodes = Episodes(np.arange(0), np.arange(0))
    assert len(Claims(episodes).claim(5)) == 0
