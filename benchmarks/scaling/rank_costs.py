"""What ranks measure together: python -m benchmarks.scaling.measure starts this under torchrun.

A claim is an addition to a counter in torchrun's store. An exchange is `ProcessGroup.together`: every rank
sends rank 0 some bytes, and rank 0 sends all of them an answer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from es_flipout.rollout import ProcessGroup

Row = dict[str, Any]
CLAIM_ALONE, CLAIM_TOGETHER, EXCHANGE = "claim, others idle", "claim, all at once", "exchange"
"""Contestants: of the first two `seconds` is a round trip."""
SECONDS, COMPUTED = "seconds", "seconds computed"
"""Metrics: what passes, and for how long the cores work for rank 0."""
SMALL = 100
"""Bytes of what is not varied."""


def main(words: Sequence[str]) -> None:
    """Measures as told by a JSON document, and writes rows to a file on rank 0: SETTINGS FILE."""
    settings, path = json.loads(words[0]), Path(words[1])
    torch.set_num_threads(1)
    ranks = ProcessGroup.of_environment()
    with closing(ranks):
        ranks.start(None, timeout=600.0, device="cpu")
        rows = measured(ranks, settings)
        if ranks.rank == 0:
            path.write_text(json.dumps(rows))


def measured(ranks: ProcessGroup, settings: Row) -> list[Row]:
    """Returns the rows of one start of all ranks; every rank must call it."""
    calls, sizes, case = settings["calls"], settings["sizes"], {"ranks": ranks.size}
    rows: list[Row] = []
    if (add := ranks.counter()) is not None:
        alone = _claims(ranks, add, calls, everyone=False)
        together = _claims(ranks, add, calls, everyone=True)
        rows.append({**case, "contestant": CLAIM_ALONE, SECONDS: alone[0]})
        rows.append({**case, "contestant": CLAIM_TOGETHER, SECONDS: statistics.fmean(together)})
    pairs = [*((size, SMALL) for size in sizes), *((SMALL, size) for size in sizes)]
    for said, answered in dict.fromkeys(pairs):
        figures = _exchange(ranks, said, answered, max(calls // 10, 3))
        rows.append({**case, "contestant": EXCHANGE, "bytes": said, "answer_bytes": answered, **figures})
    return rows


def _claims(ranks: ProcessGroup, add: Callable[[int], int], calls: int, *, everyone: bool) -> list[float]:
    """Returns the mean seconds of a claim of each rank."""

    def claim() -> float:
        if not everyone and ranks.rank > 0:
            return 0.0
        started = time.perf_counter()
        for _ in range(calls):
            add(1)
        return (time.perf_counter() - started) / calls

    ranks.together(lambda: None, lambda _: None)  # all are here
    return ranks.together(claim, list)


def _exchange(ranks: ProcessGroup, said: int, answered: int, calls: int) -> dict[str, float]:
    """Returns the median seconds of an exchange, as rank 0 sees them, and the mean seconds of its threads."""
    payload, answer = bytes(said), bytes(answered)
    ranks.together(lambda: payload, lambda _: answer)
    seconds, computed = [], time.process_time()
    for _ in range(calls):
        started = time.perf_counter()
        ranks.together(lambda: payload, lambda _: answer)
        seconds.append(time.perf_counter() - started)
    computed = time.process_time() - computed
    return {SECONDS: statistics.median(seconds), COMPUTED: computed / calls}


if __name__ == "__main__":
    main(sys.argv[1:])
