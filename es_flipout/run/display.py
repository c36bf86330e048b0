"""The live part of the terminal: what is being done, how far a generation is, how far the run is.

On a terminal these are lines below the output, redrawn a few times per second. Anywhere else, a terminal that
cannot redraw lines included, only what takes longer than a second is a line, once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.spinner import Spinner
from typing_extensions import override

from es_flipout.run.onlooker import Onlooker

SECONDS_UNTIL_SAID = 1.0
"""What takes no longer than this is not worth a line in a file, or a bar of its own."""


class Display(Onlooker):
    """Shows lines below the output of a console, if that is a terminal."""

    def __init__(self, console: Console) -> None:
        """Shows nothing yet.

        Args:
            console: where to show it.
        """
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[right]}"),
        )
        self._bars = Progress(*columns, auto_refresh=False, console=console)
        self._generation = self._bars.add_task("", visible=False, total=1, right="")
        self._run = self._bars.add_task("run", visible=False, total=1, right="")
        self._spinner: Spinner | None = None
        self._live = Live(get_renderable=self._lines, console=console, transient=True)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        if self._is_live:
            self._live.start()

    def _lines(self) -> Group:
        return Group(*([] if self._spinner is None else [self._spinner]), self._bars.get_renderable())

    @contextlib.contextmanager
    @override
    def doing(self, what: str) -> Iterator[None]:
        timer = threading.Timer(SECONDS_UNTIL_SAID, self._say, (f"{what} ...",))
        timer.daemon = True
        if self._is_live:
            self._spinner = Spinner("dots", what)
        else:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._spinner = None

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads on, or the disk is full: the next report meets it
            self._console.print(line)

    @override
    def playing(self, generation: int, finished: int, total: int, env_steps: int, seconds: float) -> None:
        if seconds < SECONDS_UNTIL_SAID:
            return
        if finished:
            right = f"{finished:,} of {total:,} episodes  {env_steps / seconds:,.0f} env steps/s so far"
        else:
            right = f"{total:,} episodes, {seconds:.0f} s"
        self._bars.update(
            self._generation,
            description=f"generation {generation}",
            total=total,
            completed=finished,
            right=right,
            visible=True,
        )

    def progress(self, completed: float | None, right: str) -> None:
        """Shows how far the run is, and that a generation is whole.

        Args:
            completed: used share of the run's budget, in [0, 1]; None for a run without a limit.
            right: what is at the right of the bar.
        """
        self._bars.update(self._generation, visible=False)
        self._bars.update(
            self._run,
            total=None if completed is None else 1.0,
            completed=completed or 0.0,
            right=right,
            visible=True,
        )

    def close(self) -> None:
        """Takes the lines away."""
        self._live.stop()
