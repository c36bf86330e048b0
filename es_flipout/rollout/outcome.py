"""What came of some episodes of a table, as it travels between processes that hold the same table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from es_flipout.rollout.moments import Floats, Ints, MomentRecords


@dataclass(frozen=True)
class Outcome:
    """What came of M episodes.

    Attributes:
        rows: which episodes, int64 [M].
        returns: float64 [M].
        lengths: env steps, int64 [M].
        faults: why some failed, by index into `rows`.
        spent_steps: env steps spent on them.
        moments: of their observations; None if none are kept.
    """

    rows: Ints
    returns: Floats
    lengths: Ints
    faults: dict[int, str]
    spent_steps: int
    moments: MomentRecords | None

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """Returns what came of all episodes, in the order of their rows, with one record of their moments."""
        rows, returns, lengths = (
            np.concatenate([getattr(each, name) for each in parts]) for name in ("rows", "returns", "lengths")
        )
        order = np.argsort(rows, kind="stable")
        place = np.argsort(order, kind="stable").tolist()
        starts = np.cumsum([0, *(len(each.rows) for each in parts)]).tolist()
        faults = {
            place[start + index]: fault
            for start, each in zip(starts, parts, strict=False)
            for index, fault in each.faults.items()
        }
        records = [each.moments for each in parts if each.moments is not None]
        moments = MomentRecords.of(MomentRecords.joined(records).merged()) if records else None
        spent = sum(each.spent_steps for each in parts)
        return cls(rows[order], returns[order], lengths[order], faults, spent, moments)
