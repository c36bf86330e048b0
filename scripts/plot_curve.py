"""Draws the learning curves of runs: the score over env steps and over time.

python -m scripts.plot_curve benchmarks/results/humanoid_long_run --over env_steps --out docs/humanoid.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots
from es_flipout.run.run_directory import RunDirectory

OVER: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "env_steps": ("million live env steps", lambda line: line["env_steps"] / 1e6),
    "minutes": ("minutes", lambda line: line["timing"]["seconds"] / 60),
}
"""What scores are drawn over: the panel's name, and the value in a line of the metrics."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--over", nargs="+", choices=OVER, default=list(OVER), help="(default: both)")
    arguments = parser.parse_args()
    rows = []
    for run in arguments.runs:
        lines = RunDirectory.open(run).read_metrics()
        for line in lines:
            for panel, x in (OVER[over] for over in arguments.over):
                row = {"panel": panel, "x": x(line), "line": f"{run.name}: score"}
                rows.append(row | {"style": plots.PALE, "value": line["fitness_mean"]})
                if line["score"] is not None:
                    rows.append(row | {"value": line["score"]})
    title = f"{arguments.title} (pale: mean of the population)"
    plots.draw(arguments.out, rows, rows, ylabel="return", title=title)


if __name__ == "__main__":
    main()
