"""Starts ranks on this machine with torchrun, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def torchrun(ranks: int, code: str, words: Sequence[str], folder: Path) -> str:
    """Runs Python code on several ranks of this machine, and returns what they printed.

    Args:
        ranks: how many.
        code: what every rank executes; `words` are in `sys.argv[1:]`.
        words: arguments.
        folder: to run in; the log is there.

    Raises:
        ValueError: if it fails.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "--no-python", sys.executable, "-c", code, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder / "torchrun.log"
    with log.open("w") as file:
        process = subprocess.run(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    said = log.read_text()
    if process.returncode:
        raise ValueError(f"{ranks} ranks ended with status {process.returncode}: {said.strip()[:3000]}")
    return said
