"""Summarizes a run after every ten minutes of training: score, live env steps, speed.

python -m scripts.summarize_run runs/Humanoid-v5-seed0 --json humanoid.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from es_flipout.cli.arguments import load_config
from es_flipout.run.errors import RunError
from es_flipout.run.machine import describe_machine
from es_flipout.run.run_directory import RunDirectory


def milestones(lines: Sequence[dict[str, Any]], minutes: float) -> list[dict[str, Any]]:
    """Returns the state of a run at the end of each period of its training time, and at its end.

    Args:
        lines: metrics, one generation each.
        minutes: length of a period.
    """
    found = []
    period: list[dict[str, Any]] = []
    score = None
    for line, following in zip(lines, [*lines, None][1:], strict=True):
        period.append(line)
        score = line["score"] if line["score"] is not None else score
        number = line["timing"]["seconds"] // (60 * minutes)
        if following is None or following["timing"]["seconds"] // (60 * minutes) > number:
            found.append(
                {
                    "minutes": line["timing"]["seconds"] / 60,
                    "generation": line["generation"],
                    "env_steps": line["env_steps"],
                    "last_score": score,
                    "median_env_steps_per_second": statistics.median(
                        each["timing"]["env_steps_per_second"] for each in period
                    ),
                    "median_live_share": statistics.median(each["timing"]["live_share"] for each in period),
                }
            )
            period = []
    return found


def without_folder(value: Any, folder: Path) -> Any:
    """Returns a document in which every path below `folder` is relative to it."""
    if isinstance(value, dict):
        return {key: without_folder(each, folder) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folder(each, folder) for each in value]
    if isinstance(value, str) and Path(value).is_relative_to(folder):
        return str(Path(value).relative_to(folder))
    return value


def main() -> int:
    """Prints and writes the summary; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of a period")
    parser.add_argument("--device", default="cpu", help="name of the device that it ran on")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    try:
        run = RunDirectory.open(arguments.run)
        found = milestones(run.read_metrics(), arguments.minutes)
        if not found:
            raise RunError(f"{arguments.run} has no complete generation to summarize")
    except RunError as error:
        print(f"summarize_run: {error}", file=sys.stderr)
        return error.exit_status
    for each in found:
        score = each["last_score"]
        print(
            f"{each['minutes']:7.1f} min  generation {each['generation']:5}  "
            f"{each['env_steps'] / 1e6:9.2f} M env steps  "
            f"score {'-' if score is None else format(score, '.0f'):>6}  "
            f"{each['median_env_steps_per_second']:10,.0f} env steps/s  live {each['median_live_share']:.0%}"
        )
    if arguments.json:
        here = Path.cwd()
        document = {
            "command": shlex.join(
                ["python", "-m", "scripts.summarize_run", *without_folder(sys.argv[1:], here)]
            ),
            "machine": describe_machine(arguments.device),
            "config": asdict(load_config(run.config)),
            "milestones": found,
        }
        arguments.json.write_text(json.dumps(without_folder(document, here), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
