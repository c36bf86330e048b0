"""Keeps what trials by hand have shown: of each run, the settings that are not the defaults, and its curve.

python -m scripts.trials runs/trials/humanoid_* --json benchmarks/results/trials_humanoid.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from es_flipout.cli.arguments import load_config
from es_flipout.run.config import Config, flat_config
from es_flipout.run.machine import describe_machine
from es_flipout.run.run_directory import RunDirectory

NOT_TOLD = ("out", "threads", "device", "env.engine", "logging.reporters", "logging.histogram_interval")
"""Settings that say where a run took place and what it wrote."""


def trial(run: RunDirectory) -> dict[str, Any]:
    """Returns what is kept of a run."""
    defaults = flat_config(Config())
    settings = flat_config(load_config(run.config))
    lines = run.read_metrics()
    scored = [line for line in lines if line["score"] is not None]
    return {
        "name": run.path.name,
        "settings": {
            name: value
            for name, value in settings.items()
            if value != defaults[name] and name not in NOT_TOLD
        },
        "generations": lines[-1]["generation"],
        "env_steps": lines[-1]["env_steps"],
        "minutes": round(lines[-1]["timing"]["seconds"] / 60, 1),
        "curve": {
            "env_steps": [line["env_steps"] for line in scored],
            "score": [round(line["score"], 1) for line in scored],
            "fitness_mean": [round(line["fitness_mean"], 1) for line in scored],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    trials = [trial(RunDirectory.open(path)) for path in arguments.runs]
    arguments.json.write_text(json.dumps({"trials": trials, "machine": describe_machine()}) + "\n")


if __name__ == "__main__":
    main()
