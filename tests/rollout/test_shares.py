"""Shares: everybody gets work, everything is played, and what kills its workers is found alone."""

from __future__ import annotations

import numpy as np
import pytest

from es_flipout.rollout import Episodes
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.shares import MAX_DEATHS, Shares

DIED = "the worker process died"


class Crew:
    """Some workers, which ask for shares as they become free."""

    def __init__(self, table: Episodes, num_envs: list[int], **options) -> None:
        self.table, self.num_envs = table, num_envs
        self.shares = Shares(table, Claims(table), len(num_envs), **options)
        self.hands: list[list[np.ndarray]] = [[] for _ in num_envs]

    def hand_out(self, worker: int) -> None:
        hand, envs = self.hands[worker], self.num_envs[worker]
        while not any(map(self.shares.is_suspect, hand)):
            room = max(envs - sum(map(len, hand)), 0)
            rows = self.shares.next(room, envs, is_idle=not hand)
            if rows is None:
                break
            hand.append(rows)
            if room <= len(rows):
                break

    def play(self, rows: np.ndarray) -> None:
        share = self.table.take(rows)
        count = np.arange(len(rows))
        share.record(count, share.reset_seed.astype(float), np.ones(len(rows), np.int64))
        self.table.put(rows, share)

    @property
    def in_hand(self) -> list[int]:
        return [sum(map(len, hand)) for hand in self.hands]


def crew(episodes: int, num_envs: list[int], **options) -> Crew:
    """Returns workers that have been given what they can play at a time."""
    found = Crew(Episodes.of_population(range(episodes)), num_envs, **options)
    for worker in range(len(num_envs)):
        found.hand_out(worker)
    return found


@pytest.mark.parametrize(("episodes", "envs"), [(64, 32), (256, 128), (16, 8), (40, 20)])
def test_if_all_episodes_find_an_env_all_workers_get_as_many(episodes, envs):
    assert crew(episodes, [envs, envs]).in_hand == [episodes // 2] * 2


def test_nobody_gets_more_than_fits_if_others_would_go_without():
    assert crew(56, [28, 28]).in_hand == [28, 28]


def test_while_there_is_enough_for_all_a_worker_has_a_share_in_advance():
    assert min(crew(1000, [20, 20]).in_hand) > 20


@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("num_envs", [[1], [1, 1, 1], [5, 8], [100, 3]])
def test_everything_is_played_once(num_envs, block_size):
    table = Episodes.of_population(np.arange(74).reshape(37, 2), block_size=block_size)
    workers, rng, played = Crew(table, num_envs), np.random.default_rng(0), []
    while table.unplayed:
        for worker in range(len(num_envs)):
            workers.hand_out(worker)
        busy = [hand for hand in workers.hands if hand]
        rows = busy[rng.integers(len(busy))].pop(0)
        played += rows.tolist()
        workers.play(rows)
    assert sorted(played) == list(range(74))
    assert table.returns.tolist() == list(range(74))


@pytest.mark.parametrize(("envs", "block_size"), [(1, 1), (1, 2), (16, 4), (64, 4)])
def test_a_member_that_kills_its_workers_fails_alone(envs, block_size):
    table = Episodes.of_population(np.arange(40).reshape(20, 2), block_size=block_size)
    workers, deaths = Crew(table, [envs]), 0
    while table.unplayed:
        workers.hand_out(0)
        hand, workers.hands[0] = workers.hands[0], []
        if any(7 in table.member[rows] for rows in hand):
            deaths += 1
            for rows in hand:
                workers.shares.lose(rows, DIED)
        else:
            for rows in hand:
                workers.play(rows)
    assert {row // 2 for row in table.faults} == {7}
    assert set(table.faults.values()) == {DIED}
    assert MAX_DEATHS <= deaths <= 2 * MAX_DEATHS + 8


def test_a_worker_has_one_company_at_a_time():
    table = Episodes.of_population(range(30))
    shares = Shares(table, Claims(table), 2, company=12)
    assert shares.next(64, 64, is_idle=True).tolist() == list(range(12))
    assert shares.next(64, 64, is_idle=False) is None
    assert not shares.is_empty
    assert shares.next(1, 64, is_idle=True).tolist() == list(range(12, 24))
    assert shares.next(64, 64, is_idle=True).tolist() == list(range(24, 30))
    assert shares.is_empty


@pytest.mark.parametrize("options", [{}, {"by_member": True}, {"company": 8}])
def test_others_may_have_claimed_everything(options):
    table, claimed = Episodes.of_population(range(12)), [12]
    claims = Claims(table, add=lambda number: claimed.append(number) or sum(claimed), num_players=2)
    shares = Shares(table, claims, 2, **options)
    assert not shares.is_empty  # as far as is known
    assert shares.next(4, 4, is_idle=True) is None
    assert shares.is_empty
