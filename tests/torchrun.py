"""How tests start es-train on several ranks, by the real torchrun, and compare what came of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from es_flipout.run import checkpoint

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
ES_TRAIN = str(Path(sys.executable).with_name("es-train"))


def command(ranks: int, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Returns the command that runs es-train on so many ranks; 0: without torchrun."""
    launch = [*LAUNCHER, "--standalone", *options, "--nproc-per-node", str(ranks), "--no-python"]
    return [*(launch if ranks else ()), ES_TRAIN, *arguments]


def run(ranks: int, *arguments: str, options: Sequence[str] = (), timeout: float = 200, **variables: str):
    """Runs es-train on so many ranks in the current folder."""
    return subprocess.run(
        command(ranks, *arguments, options=options),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **variables},
    )


def write_config(path: Path, **settings) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def metrics(folder: str | Path) -> list[dict]:
    """Returns the metrics of a run, without what may differ from run to run."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "timing"} for line in lines]


def differences(one: str | Path, other: str | Path) -> list[str]:
    """Returns what differs between two runs, but for speed: metrics, and every bit of each checkpoint."""
    found = [] if metrics(one) == metrics(other) else ["metrics"]
    names = [sorted(each.name for each in (Path(run) / "checkpoints").glob("*.pt")) for run in (one, other)]
    if names[0] != names[1] or not names[0]:
        return [*found, f"checkpoints {names}"]
    for name in names[0]:
        states = [checkpoint.load(Path(run) / "checkpoints" / name) for run in (one, other)]
        found += [f"{name}: {where}" for where in _differing(*states)]
    return found


def _differing(one, other, where: str = "") -> list[str]:
    if where.endswith((".seconds", ".timing")):
        return []
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [where]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{where}: {list(one)} {list(other)}"]
        return [each for key in one for each in _differing(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        pairs = enumerate(zip(one, other, strict=True))
        return [each for index, pair in pairs for each in _differing(*pair, f"{where}.{index}")]
    return [] if repr(one) == repr(other) else [f"{where}: {one} {other}"]
