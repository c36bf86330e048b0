"""The commands of a checkout of this project, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Checkout:
    """A clone of this project, run by this Python.

    Attributes:
        path: its root, which holds the package.
        environment: further environment variables.
    """

    path: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.path / "es_flipout" / "__init__.py").is_file():  # or the installed package would run
            raise ValueError(f"{self.path} is not a checkout of this project: it has no folder es_flipout")

    @contextmanager
    def started(self, command: str, words: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
        """Starts `command` ("train" or "eval") in a folder, and stops it in the end if it still runs.

        What it prints goes to COMMAND.log there.
        """
        code = f"import sys; from es_flipout.cli.{command} import main; sys.exit(main(sys.argv[1:]))"
        variables = {**os.environ, **self.environment, "PYTHONPATH": str(self.path)}
        with (folder / f"{command}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *words],
                cwd=folder,  # Python finds a package in the current folder first
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait()

    def run(self, command: str, words: Sequence[str], folder: Path) -> str:
        """Runs it to its end, and returns what it printed.

        Raises:
            ValueError: if it fails.
        """
        with self.started(command, words, folder) as process:
            status = process.wait()
        return self.checked(status, command, folder)

    def checked(self, status: int, command: str, folder: Path) -> str:
        """Returns what a command printed that ended with a status.

        Raises:
            ValueError: if that is not 0.
        """
        said = (folder / f"{command}.log").read_text()
        if status:
            raise ValueError(f"es-{command} of {self.path} ended with status {status}: {said.strip()[-300:]}")
        return said


def metrics_between(path: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl about generations from `first` to `last`."""
    with path.open() as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return [line for line in lines if first <= line["generation"] <= last]


def last_metrics(path: Path) -> dict[str, Any] | None:
    """Returns the last whole line of a metrics.jsonl; None if there is none yet."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 10_000, 0))
        *_, line, _ = [b"", *file.read().split(b"\n")]
    return json.loads(line) if line else None
