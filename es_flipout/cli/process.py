"""What a command owes its process: exit status, one-line errors, signals."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import mujoco

from es_flipout.cli.arguments import UsageError
from es_flipout.run.checkpoint import RunError


class UsageParser(argparse.ArgumentParser):
    """A parser that raises a `UsageError` instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises the message."""
        raise UsageError(message)


Command = Callable[[Sequence[str]], int]


def run_command(program: str, command: Command, arguments: Sequence[str] | None) -> int:
    """Runs a command and returns its exit status; a user's mistake is one line on standard error and 2.

    Modules of the user's own (an environment, a policy, an optimizer) are found in the current folder, as
    with `python -m`.
    """
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        return command(sys.argv[1:] if arguments is None else arguments)
    except (UsageError, RunError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def silence_mujoco() -> None:
    """Keeps MuJoCo's warnings off the terminal and out of MUJOCO_LOG.TXT, for the rest of the process.

    They concern single simulations, whose failures are counted and reported as such.
    """
    mujoco.set_mju_user_warning(lambda message: None)


class StopRequest:
    """Remembers the first SIGINT or SIGTERM, for the work to stop at its next safe point.

    A second signal acts as it would have without this.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous = {
            number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __call__(self) -> bool:
        """Returns whether a stop was requested."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.restore()
        # Not print: the signal may have interrupted one.
        os.write(sys.stderr.fileno(), b"stopping; once more aborts at once\n")

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """Status to exit with: 0, or as a shell reports a signal, 128 + its number."""
        return 0 if self.signal is None else 128 + self.signal
