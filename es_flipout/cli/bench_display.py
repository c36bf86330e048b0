"""What es-bench shows: a progress bar on standard error, tables on standard output."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from es_flipout.bench.report import Figures, Ratio, Spread, Watch, ratios_within, spreads

TABLE_WIDTH = 140
"""Columns that tables get where there is no terminal to ask."""


class Bar(AbstractContextManager["Bar"]):
    """A progress bar on standard error, gone at the end; none where that is no terminal."""

    def __init__(self, title: str, subjects: int = 1) -> None:
        """Makes room for so many subjects, one after the other."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._title = title
        self._task = self._progress.add_task(title, total=subjects)
        self._begun = 0

    def __enter__(self) -> Bar:
        """Shows it."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes it away."""
        self._progress.stop()

    def subject(self, name: str = "") -> Watch:
        """Returns what watches the next subject."""
        index, self._begun = self._begun, self._begun + 1
        title = f"{self._title}, {name}" if name else self._title

        def watch(measured: str, done: float) -> None:
            self._progress.update(self._task, completed=index + done, description=f"{title}: {measured}")

        return watch


def number(value: float) -> str:
    """Returns a figure with three significant digits, or all digits before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def spread_of_ms(seconds: Spread) -> tuple[str, str]:
    """Returns the median in ms, and the span."""
    median, lowest, highest = (
        number(1e3 * value) for value in (seconds.median, seconds.lowest, seconds.highest)
    )
    return median, f"{lowest}..{highest}"


def make_table(title: str, first: str, *others: str) -> Table:
    """Returns a table without rows; the columns but the first are flush right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right")
    return table


def figures_table(title: str, rounds: Sequence[Figures]) -> Table:
    """Returns median, lowest and highest of every figure."""
    table = make_table(title, "contestant", "median", "lowest", "highest")
    for name, spread in spreads(rounds).items():
        table.add_row(name, *map(number, (spread.median, spread.lowest, spread.highest)))
    return table


def ratios_table(rounds: Sequence[Figures], ratios: Mapping[str, Ratio]) -> Table:
    """Returns every ratio, in the median and by round."""
    table = make_table("ratios within a round", "ratio", "median", "by round")
    values = ratios_within(rounds, ratios)
    for name, by_round in values.items():
        median = statistics.median(by_round)
        table.add_row(name, f"{median:.3f}", ", ".join(f"{value:.3f}" for value in by_round))
    return table


def print_tables(tables: Sequence[Table]) -> None:
    """Prints tables, as wide as the terminal, or as they like where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    for table in tables:
        console.print(table)
