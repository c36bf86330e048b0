"""The handshake: all ranks meet, also where ranks that have died left traces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from es_flipout.rollout.handshake import meet, verdict_on


def meet_all(store, size, *, seconds=20):
    """Has so many ranks meet, on threads; returns what each finds where rank 0 writes afterwards."""

    def be(rank):
        own = meet(store, rank, size, seconds=seconds)
        if rank == 0:
            own.set("word", f"hello {seconds}")
        own.wait(["word"])
        return own.get("word").decode()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(be, range(size)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_meet(size):
    assert meet_all(HashStore(), size) == ["hello 20"] * size


def test_they_meet_again_after_all_have_died():
    store = HashStore()
    assert meet_all(store, 3, seconds=20) == ["hello 20"] * 3
    assert meet_all(store, 3, seconds=21) == ["hello 21"] * 3
    assert meet_all(store, 2, seconds=22) == ["hello 22"] * 2  # fewer of them


def test_they_meet_although_a_rank_0_died_that_had_answered_some():
    store = HashStore()
    with (
        pytest.raises(TimeoutError, match=r"not all of 3 ranks connected within 0\.2 seconds"),
        ThreadPoolExecutor(2) as threads,
    ):
        list(threads.map(lambda rank: meet(store, rank, 3, seconds=0.2), range(2)))
    assert meet_all(store, 3) == ["hello 20"] * 3


def test_a_rank_that_was_answered_by_a_rank_0_that_died_hears_its_successor():
    store = HashStore()
    with ThreadPoolExecutor(3) as threads:
        early = threads.submit(meet, store, 1, 3, seconds=20)
        with pytest.raises(TimeoutError):
            meet(store, 0, 3, seconds=0.3)
        late = [threads.submit(meet, store, rank, 3, seconds=20) for rank in (0, 2)]
        stores = [each.result() for each in (*late, early)]
    stores[0].set("word", "hello")
    assert [each.get("word") for each in stores] == [b"hello"] * 3


def test_ranks_with_other_versions_or_a_problem_cannot_begin():
    same = {"Python": "3.11.9", "torch": "2.13.0"}
    assert verdict_on([(None, same), (None, same)]) is None
    found = verdict_on([(None, same), (None, same | {"torch": "2.12.0"})])
    assert found == "rank 1 has torch 2.12.0, rank 0 has 2.13.0: they must be the same"
    assert verdict_on([(None, same), ("no GPU", same)]) == "rank 1: no GPU"
    assert verdict_on([("no GPU", same), (None, same)]) == "no GPU"
