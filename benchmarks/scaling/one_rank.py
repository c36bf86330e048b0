"""One rank under torchrun against es-train alone: python -m benchmarks.scaling.one_rank [--json FILE]."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling.launch import ROOT, torchrun
from es_flipout.cli.option_types import COUNT
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results
from es_flipout.run.machine import describe_machine

ALONE, ONE_RANK = "es-train", "es-train on one rank"
RATE = "env steps/s"
CODE = "import sys; from es_flipout.cli.train import main; sys.exit(main(sys.argv[1:]))"
WARM_UP = 5
"""Generations that are not counted."""


def main(words: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return run_command("benchmarks.scaling.one_rank", _measure, words)


def _measure(words: Sequence[str]) -> int:
    parser = UsageParser(prog="benchmarks.scaling.one_rank", description=__doc__, allow_abbrev=False)
    parser.add_argument("--configs", nargs="+", default=["halfcheetah.yaml", "hopper.yaml", "cartpole.yaml"])
    parser.add_argument("--generations", type=COUNT, default=40)
    parser.add_argument("--rounds", type=COUNT, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the results")
    options = parser.parse_args(words)
    command = shlex.join(["python", "-m", "benchmarks.scaling.one_rank", *words])
    results = Results({"command": command, "machine": describe_machine()})
    for index in range(options.rounds):
        for config in options.configs:
            for ranks, name in ((0, ALONE), (1, ONE_RANK)):
                results.add(index, name, {RATE: rate(ranks, config, options.generations)}, config=config)
    print(
        "| configuration | es-train, env steps/s | on one rank | ratio, by round |\n| --- | --- | --- | --- |"
    )
    for config in options.configs:
        own = results.where(config=config)
        ratios = own.ratios((ONE_RANK, RATE), (ALONE, RATE))
        cells = [str(own.spread(name, RATE)) for name in (ALONE, ONE_RANK)]
        by_round = ", ".join(f"{each:.3f}" for each in ratios)
        print(f"| {config} | {' | '.join(cells)} | {statistics.median(ratios):.3f} ({by_round}) |")
    if options.json:
        results.write(options.json)
    return 0


def rate(ranks: int, config: str, generations: int) -> float:
    """Returns live env steps per second of training, the first generations left out.

    Args:
        ranks: 1 under torchrun, 0 without it.
        config: name of a shipped configuration.
        generations: how many in all.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["--config", config, "--generations", str(generations), "--out", "run"]
        words += ["--evaluation.interval", "0"]
        if ranks:
            torchrun(ranks, CODE, words, folder)
        else:
            command = [sys.executable, "-c", CODE, *words]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[WARM_UP - 1], lines[-1]
    seconds = last["timing"]["seconds"] - first["timing"]["seconds"]
    return float((last["env_steps"] - first["env_steps"]) / seconds)


if __name__ == "__main__":
    sys.exit(main())
