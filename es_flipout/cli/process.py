"""What every command does as a process: exit status, one-line errors, signals."""

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
from typing_extensions import override

from es_flipout.cli.arguments import UsageError
from es_flipout.run.checkpoint import RunError


class UsageParser(argparse.ArgumentParser):
    """A parser that raises a `UsageError` instead of printing usage and exiting."""

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


Command = Callable[[Sequence[str]], int]


def run_command(program: str, command: Command, arguments: Sequence[str] | None) -> int:
    """Runs a command and returns its exit status; for a user's mistake, one line on standard error and 2.

    The current folder is on the import path, as with `python -m`, so that a user's modules (an environment, a
    policy, an optimizer) are found.
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
    """Turns off MuJoCo's warnings, on the terminal and in MUJOCO_LOG.TXT, for the rest of the process.

    They are about single envs, whose failed episodes are counted and reported anyway.
    """
    mujoco.set_mju_user_warning(lambda message: None)


class StopRequest:
    """Remembers the first SIGINT or SIGTERM, so that the work can stop at its next safe point.

    A second signal has its usual effect.
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
        os.write(sys.stderr.fileno(), b"Stopping safely. Press Ctrl-C again to abort.\n")

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """Status to exit with: 0, or 128 + the number of the signal, as a shell reports it."""
        return 0 if self.signal is None else 128 + self.signal
