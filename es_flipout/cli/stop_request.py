"""A stop that is asked for by a signal, and comes at the next safe point of the work."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from es_flipout.rollout import Ranks
from es_flipout.rollout.rank_contract import ALONE


class StopRequest:
    """Remembers the first SIGINT or SIGTERM, so that the work can stop at its next safe point.

    A second signal has its usual effect, unless torchrun has started this process: it sends a signal on to
    processes that may have got it already, and kills those that take too long.
    """

    def __init__(self, *, ranks: Ranks = ALONE) -> None:
        """Begins to listen.

        Args:
            ranks: of the run; rank 0 says that it stops.
        """
        self._ranks = ranks
        self.signal: int | None = None
        self._previous = {
            number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __call__(self) -> bool:
        """Returns whether a stop was requested."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or number
        if self._ranks.is_launched:
            message = b"Stopping safely.\n" if first and self._ranks.rank == 0 else b""
        else:
            self.restore()
            message = b"Stopping safely. Press Ctrl-C again to abort.\n"
        os.write(sys.stderr.fileno(), message)  # not print: the signal may have interrupted one

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """Status to exit with: 0, or 128 + the number of the signal, as a shell reports it."""
        return 0 if self.signal is None else 128 + self.signal
