"""What ends a command early: one line and an exit status, whatever it is."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from es_flipout.cli.arguments import ParserExit, UsageError
from es_flipout.cli.process import OutputConsole, UsageParser, run_command
from es_flipout.run.errors import RunBrokenError, RunError


def ended_by(error):
    def command(arguments):
        raise error

    return run_command("it", command, [])


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("wrong\nvalue"), 2, "wrong value"),
        (RunError("no run"), 2, "no run"),
        (RunBrokenError("disk full"), 1, "disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 1, "ended by code of the user's, which called sys.exit(0)"),
        (SystemExit("no license"), 1, "ended by code of the user's, which called sys.exit('no license')"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            1,
            "out of memory (Unable to allocate 9 TiB): try a smaller",
        ),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "out of memory (CUDA out of memory.): try"),
    ],
)
def test_an_early_end_is_one_line_and_a_status(error, status, message, capsys):
    assert ended_by(error) == status
    errors = capsys.readouterr().err
    assert errors.startswith(f"it: {message}")
    assert errors.count("\n") == 1


def test_torch_out_of_memory_is_told(capsys):
    def command(arguments):
        torch.empty(1 << 60, dtype=torch.int8)

    assert run_command("it", command, []) == 1
    assert "it: out of memory (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("ours"), OSError(errno.ENOENT, "ours"), OSError(errno.ENOSPC, "ours", "file")]
)
def test_a_mistake_of_this_package_has_its_traceback(error):
    with pytest.raises(type(error), match="ours"):
        ended_by(error)


def test_help_is_no_early_end():
    with pytest.raises(ParserExit) as stop:
        run_command("it", lambda arguments: UsageParser().parse_args(arguments), ["--help"])
    assert stop.value.code == 0


PRINTS = """
import sys
from es_flipout.cli.process import run_command
sys.exit(run_command("it", lambda arguments: print("x" * 100_000) or 0, []))
"""


@pytest.mark.parametrize("place", ["/dev/full", "nobody"])
def test_output_that_nobody_takes_is_told_by_the_status(place):
    script = [sys.executable, "-c", PRINTS]
    if place == "nobody":  # as with `| head`
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(place, os.O_WRONLY)
    ended = subprocess.run(script, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    if place == "nobody":
        assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")
    else:
        message = "it: cannot write the output: No space left on device\n"
        assert (ended.returncode, ended.stderr) == (1, message)


def test_modules_of_the_current_folder_are_found():
    Path("of_this_folder.py").write_text("found = 7\n")

    def command(arguments):
        import of_this_folder

        return of_this_folder.found

    assert run_command("it", command, []) == 7


def test_forced_color_makes_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels of notebooks do for the commands that they run
    assert Console(file=io.StringIO()).is_terminal
    assert not OutputConsole(file=io.StringIO()).is_terminal
