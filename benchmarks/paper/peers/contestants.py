"""Who is compared, and the processes that measure them, each in the Python environment of its library."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from es_flipout.run.machine import describe_machine

ROOT = Path(__file__).resolve().parents[3]
OURS = "ours"


@dataclass(frozen=True)
class Contestant:
    """A library.

    Attributes:
        module: in this folder.
        environment: name of the folder of its virtual environment; None for this one.
    """

    module: str
    environment: str | None


CONTESTANTS = {
    OURS: Contestant("with_ours", None),
    "bayesian-torch": Contestant("with_bayesian_torch", "bayesian_torch"),
    "blitz": Contestant("with_blitz", "blitz"),
    "TFP": Contestant("with_tfp", "tfp"),
    "TFP, XLA": Contestant("with_tfp_xla", "tfp"),
}
"""By name, in the order of a round."""


class Process:
    """A running `worker`."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        """Takes over the process of the contestant of that name."""
        self._process, self._name = process, name

    def ask(self, what: str, **arguments: object) -> Any:
        """Returns its answer.

        Raises:
            RuntimeError: if the process has ended, for a reason that is on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process of {self._name} ended while it measured {what} {arguments}")
        return json.loads(line)


def python_of(contestant: Contestant, environments: Path | None) -> Path | None:
    """Returns the interpreter of a library; None if it has no environment."""
    if contestant.environment is None:
        return Path(sys.executable)
    if environments is None:
        return None
    path = environments.absolute() / contestant.environment / "bin" / "python"
    return path if path.exists() else None


@contextmanager
def running(
    contestants: Mapping[str, Contestant], environments: Path | None, threads: int
) -> Iterator[dict[str, Process]]:
    """Starts the processes of those contestants that have an environment, and ends them afterwards."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    variables = {**os.environ, **quiet, **dict.fromkeys(counts, str(threads))}
    processes: dict[str, Process] = {}
    with ExitStack() as stack:
        for name, contestant in contestants.items():
            if (python := python_of(contestant, environments)) is None:
                print(f"{name}: no environment {contestant.environment!r}, left out", file=sys.stderr)
                continue
            command = [str(python), "-m", "benchmarks.paper.peers.worker", contestant.module]
            process = subprocess.Popen(
                [*command, "--threads", str(threads)],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, process)
            processes[name] = Process(process, name)
        yield processes


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def settings(program: str, words: list[str], versions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the conditions of a measurement, without where the environments lie."""
    hidden = {index + 1 for index, word in enumerate(words) if word == "--environments"}
    shown = ["PEERS" if index in hidden else word for index, word in enumerate(words)]
    command = shlex.join(["python", "-m", program, *shown])
    return {"command": command, "machine": describe_machine(), "versions": dict(versions)}
