"""What a measurement came to: one long table, with a row for each contestant, metric and round.

A round measures every contestant once, so that whatever slows the machine down for a while slows all of them.
Ratios are therefore taken within a round. Of figures and of ratios alike, the median over rounds counts.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
"""Columns of the case, if there are several, then `contestant`, `metric`, `round` and `value`."""


class Spread(NamedTuple):
    """The median of a figure over rounds, and its lowest and highest value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of one value per round."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        """Returns the median, and in brackets what the rounds lie between."""
        return f"{number(self.median)} ({number(self.lowest)} to {number(self.highest)})"


@dataclass
class Results:
    """The rows of a measurement, and the conditions that hold for all of them.

    Attributes:
        settings: command, machine, versions and whatever else was chosen.
        rows: see `Row`.
    """

    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def add(self, index: int, contestant: str, figures: Mapping[str, float], **case: Any) -> None:
        """Adds the figures, by metric, of a contestant in the round of that index."""
        for metric, value in figures.items():
            self.rows.append(
                {**case, "contestant": contestant, "metric": metric, "round": index, "value": value}
            )

    def where(self, **columns: Any) -> Results:
        """Returns the results of the rows whose columns have these values."""
        rows = [row for row in self.rows if columns.items() <= row.items()]
        return Results(self.settings, rows)

    def column(self, name: str) -> list[Any]:
        """Returns the different values of a column, in the order of the rows."""
        return list(dict.fromkeys(row[name] for row in self.rows))

    def by_round(self, contestant: str, metric: str) -> dict[int, float]:
        """Returns a figure by round; empty if it was not measured."""
        own = self.where(contestant=contestant, metric=metric).rows
        return {row["round"]: row["value"] for row in own}

    def spread(self, contestant: str, metric: str) -> Spread:
        """Returns the spread of a figure over rounds."""
        return Spread.of([*self.by_round(contestant, metric).values()])

    def ratios(self, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
        """Returns the ratio of two figures, (contestant, metric) each, in every round that has both."""
        above, below = self.by_round(*one), self.by_round(*other)
        return [above[index] / below[index] for index in above if index in below]

    def write(self, path: Path) -> None:
        """Writes a JSON document, one line per row."""
        settings = json.dumps(self.settings, indent=1).removesuffix("\n}")
        rows = ",\n".join(f"  {json.dumps(row)}" for row in self.rows)
        path.write_text(f'{settings},\n "rows": [\n{rows}\n ]\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads what `write` has written."""
        settings = json.loads(path.read_text())
        return cls(settings, settings.pop("rows"))


def number(value: float) -> str:
    """Returns a figure with three significant digits, or all digits before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
