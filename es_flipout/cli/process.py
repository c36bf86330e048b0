"""What every command does as a process: exit status, one-line errors, signals.

Exit status: 0 for success, 1 if the work broke or came to nothing, 2 if it could not begin (a mistake in the
command, the configuration or the user's code), 128 + n if signal n ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from typing_extensions import override

from es_flipout.cli.arguments import ParserExit, UsageError
from es_flipout.run.errors import RunError


class UsageParser(argparse.ArgumentParser):
    """A parser that raises a `UsageError` instead of printing usage and exiting."""

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    @override
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ParserExit(status)


class OutputConsole(Console):
    """A console whose broken pipe is an exception, as with `print`, and not an exit.

    It draws bars on terminals alone: FORCE_COLOR, which notebooks set for their commands, makes no terminal.
    """

    @property
    @override
    def is_terminal(self) -> bool:
        return self.file.isatty()

    @override
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


Command = Callable[[Sequence[str]], int]


DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write without room for it."""


def run_command(program: str, command: Command, arguments: Sequence[str] | None) -> int:
    """Runs a command and returns its exit status; what ends it early is one line on standard error.

    The current folder is on the import path, as with `python -m`, so that a user's modules (an environment, a
    policy, an optimizer) are found.
    """
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        status = command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _end(program, str(error), 2)
    except RunError as error:
        return _end(program, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _end(program, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # as in `es-eval RUN | head -n 1`: nobody reads on
        _discard_output()
        return 128 + signal.SIGPIPE
    except ParserExit:
        raise
    except SystemExit as error:
        return _end(program, f"ended by code of the user's, which called sys.exit({error.code!r})", 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = "try a smaller es.population_size or env.num_envs"
        return _end(program, f"out of memory ({str(error).partition(chr(10))[0]}): {advice}", 1)
    except OSError as error:
        if error.errno not in DISK_IS_FULL or error.filename is not None:
            raise
        _discard_output()
        return _end(program, f"cannot write the output: {error.strerror}", 1)


def _end(program: str, message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # standard error may be on a full disk, too
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def _discard_output() -> None:
    """Has what is still buffered go nowhere: Python writes it at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: torch, whose type it may be, is not imported for this. What runs out on the CPU has no type.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


def silence_mujoco() -> None:
    """Turns off MuJoCo's warnings, on the terminal and in MUJOCO_LOG.TXT, for the rest of the process.

    They are about single envs, whose failed episodes are counted and reported anyway.
    """
    import mujoco  # here: --help does not wait for it

    mujoco.set_mju_user_warning(lambda message: None)
