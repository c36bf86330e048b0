"""Keeps what trials by hand have shown: settings that are not the defaults, the curve, and the final score.

python -m scripts.trials runs/trials/humanoid_* --episodes 100 --json benchmarks/results/trials_humanoid.json

Trials that the file has already stay in it, unless one of the runs has the same name.
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
from scripts.train_suite import score

NOT_TOLD = ("out", "threads", "device", "env.engine", "logging.reporters", "logging.histogram_interval")
"""Settings that say where a run took place and what it wrote."""


def trial(run: RunDirectory, episodes: int) -> dict[str, Any]:
    """Returns what is kept of a run.

    Args:
        run: the run.
        episodes: official episodes for the score of its last center; 0 for no score but those of the curve.
    """
    config = load_config(run.config)
    defaults, settings = flat_config(Config()), flat_config(config)
    if config.init_from is not None:
        settings["init_from"] = Path(config.init_from).name  # the name of a trial, wherever its folder is
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
        "returns": [round(each, 1) for each in score(run, config, episodes)["returns"]] if episodes else None,
        "machine": describe_machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--episodes", type=int, default=0, help="score the last center (default: do not)")
    arguments = parser.parse_args()
    kept = json.loads(arguments.json.read_text())["trials"] if arguments.json.exists() else []
    trials = {each["name"]: each for each in kept}
    for path in arguments.runs:
        found = trial(RunDirectory.open(path), arguments.episodes)
        trials[found["name"]] = found
    arguments.json.write_text(json.dumps({"trials": [trials[name] for name in sorted(trials)]}) + "\n")


if __name__ == "__main__":
    main()
