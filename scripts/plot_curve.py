"""Draws the learning curves of runs: the score over env steps and over time.

python -m scripts.plot_curve runs/suite/published/ant/seed? --out docs/ant.png --title Ant-v5
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import plots
from es_flipout.run.run_directory import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    rows = []
    for run in arguments.runs:
        lines = RunDirectory.open(run).read_metrics()
        for line in lines:
            places = {
                "million live env steps": line["env_steps"] / 1e6,
                "minutes": line["timing"]["seconds"] / 60,
            }
            for panel, x in places.items():
                row = {"panel": panel, "x": x, "line": f"{run.name}: score"}
                rows.append(row | {"style": plots.PALE, "value": line["fitness_mean"]})
                if line["score"] is not None:
                    rows.append(row | {"value": line["score"]})
    title = f"{arguments.title} (pale: mean of the population)"
    plots.draw(arguments.out, rows, rows, ylabel="return", title=title)


if __name__ == "__main__":
    main()
