"""ProcessGroup: what one rank knows, all know; who differs, fails or hangs is named."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import chain

import pytest
import torch
from ranks import RankProcesses, on_ranks

from es_flipout import Flipout, FlipoutES, Independent, LowRank
from es_flipout.perturbations import compute_here
from es_flipout.rollout import PlayError, PlayStoppedError
from es_flipout.rollout.exchange import odd_ones


@pytest.fixture(scope="module")
def three():
    ranks = RankProcesses(3)
    yield ranks
    ranks.close()


def test_all_ranks_get_the_answer_of_rank_0_to_what_all_said(three):
    def act(ranks):
        return [ranks.together(lambda said=(ranks.rank, turn): said, tuple) for turn in range(3)]

    expected = [((0, turn), (1, turn), (2, turn)) for turn in range(3)]
    assert three.do(act) == [expected] * 3


def test_an_error_of_one_rank_is_raised_on_all_and_names_it(three):
    def act(ranks):
        def fail():
            if ranks.rank == 1:
                raise PlayError("no such thing")

        with pytest.raises(PlayError) as caught:
            ranks.together(fail, len)
        return str(caught.value), ranks.together(lambda: 1, sum)  # they can go on

    assert three.do(act) == [("rank 1: no such thing", 3)] * 3


def test_if_one_rank_stops_all_do(three):
    def act(ranks):
        def stop():
            if ranks.rank == 2:
                raise PlayStoppedError

        with pytest.raises(PlayStoppedError):
            ranks.together(stop, len)
        return True

    assert three.do(act) == [True] * 3


def test_a_request_to_stop_reaches_ranks_at_work():
    def act(ranks):
        asked = ranks.stop_request(lambda: ranks.rank == 1)
        started = time.monotonic()
        while not asked() and time.monotonic() < started + 30:
            time.sleep(0.01)
        return asked()

    assert on_ranks(3, act) == [True] * 3


def test_a_request_to_stop_that_reaches_a_rank_while_it_waits_reaches_the_others():
    def act(ranks):
        asked = ranks.stop_request(lambda: False)

        def work():
            started = time.monotonic()
            while ranks.rank == 0 and not asked() and time.monotonic() < started + 30:
                time.sleep(0.01)
            return asked()

        return ranks.together(work, lambda said: said[0], should_stop=lambda: ranks.rank == 1)

    assert on_ranks(2, act) == [True, True]


def test_nobody_stops_unasked(three):
    assert (
        three.do(lambda ranks: [ranks.stop_request(lambda: False)() for _ in range(3)]) == [[False] * 3] * 3
    )


@pytest.mark.parametrize(
    ("digests", "named"),
    [
        (["a", "a", "b"], "rank 2 has "),
        (["b", "a", "a"], "rank 0 has "),
        (["a", "b", "c"], "ranks 1, 2 have "),
    ],
)
def test_a_rank_whose_state_differs_is_named_on_all(three, digests, named):
    def act(ranks):
        ranks.begin_comparison(digests[ranks.rank].encode())
        ranks.finish_comparison()

    found = three.do(act)
    assert len(set(found)) == 1
    assert found[0].startswith(f"{named}a different state than the other ranks")


def test_of_two_ranks_the_one_that_is_not_rank_0_differs():
    assert odd_ones([b"a", b"b"]).startswith("rank 1 has ")
    assert odd_ones([b"a", b"a"]) == ""


def test_equal_states_are_not_worth_mentioning(three):
    def act(ranks):
        for turn in range(3):
            ranks.begin_comparison(f"{turn}".encode())
            ranks.finish_comparison()
        ranks.finish_comparison()  # there is none
        return ranks.together(lambda: 1, sum)

    assert three.do(act) == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("sleeper", [0, 2])
def test_a_rank_that_hangs_is_named(sleeper):
    def act(ranks):
        ranks.together(lambda: None, len)
        ranks.together(lambda: time.sleep(9 if ranks.rank == sleeper else 0), len)

    found = on_ranks(3, act, timeout=3)
    # Rank 0 hears all; who waits for its answer may notice first that it has given up.
    speaks = 0 if sleeper else 1
    assert found[speaks] == f"rank {sleeper} did not answer within 3 seconds (rank_timeout)"


def test_ranks_notice_at_once_that_another_has_died():
    def act(ranks):
        try:
            ranks.together(lambda: os.kill(os.getpid(), signal.SIGKILL) if ranks.rank == 1 else None, len)
        finally:
            threading.Timer(1, os._exit, (0,)).start()  # as a command ends after that

    started = time.monotonic()
    found = on_ranks(3, act)
    assert time.monotonic() < started + 30  # of a timeout of 60 seconds
    assert found.pop(1) is None
    assert all(each.startswith("another rank has died") for each in found)


def test_a_counter_gives_every_number_to_one_rank(three):
    def act(ranks):
        numbers = []
        for _ in range(4):
            add = ranks.counter()
            numbers.append([add(2) for _ in range(5)])
            ranks.together(lambda: None, len)
        return numbers

    found = three.do(act)
    for turn in range(4):
        assert sorted(chain(*(each[turn] for each in found))) == list(range(2, 31, 2))


def test_the_first_ranks_can_be_a_group_of_their_own(three):
    def act(ranks):
        part = ranks.subgroup(2)
        heard = part.together(lambda: ranks.rank, list) if ranks.rank < 2 else None
        return heard, ranks.together(lambda: ranks.rank, list)

    assert three.do(act) == [([0, 1], [0, 1, 2]), ([0, 1], [0, 1, 2]), (None, [0, 1, 2])]


@pytest.mark.parametrize("family", [Flipout(num_bases=2), LowRank(2), Independent()], ids=repr)
def test_tiles_of_a_large_policy_are_shared_out_and_have_the_same_bits(three, family):
    def gradient(compute_tiles):
        torch.manual_seed(0)
        policy = torch.nn.Sequential(torch.nn.Linear(300, 1000), torch.nn.Linear(1000, 2).double())
        es = FlipoutES(policy, population_size=4, sigma=0.1, perturbation=family)
        population = es.ask()
        return population.gradient(torch.arange(4.0), compute_tiles)

    def act(ranks):
        computed = []

        def compute(tiles):
            values = ranks.compute_tiles(tiles)
            computed.append(len(tiles))
            return values

        return {name: value.numpy() for name, value in gradient(compute).items()}, computed

    expected = gradient(compute_here)
    for found, (computed,) in three.do(act):
        assert computed > 4
        for name, value in expected.items():
            assert found[name].dtype == value.numpy().dtype
            assert found[name].tobytes() == value.numpy().tobytes()
