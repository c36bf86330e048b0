"""Draws the learning curves of runs: the score over env steps and over time.

python -m scripts.plot_curve runs/suite/published/ant/seed? --out docs/ant.png --title Ant-v5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt

from es_flipout.run.checkpoint import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    figure, (by_steps, by_time) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for run in arguments.runs:
        lines = RunDirectory.open(run).read_metrics()
        scored = [line for line in lines if line["score"] is not None]
        for axis, horizontal in (
            (by_steps, lambda line: line["env_steps"] / 1e6),
            (by_time, lambda line: line["timing"]["seconds"] / 60),
        ):
            (curve,) = axis.plot(
                [horizontal(line) for line in scored],
                [line["score"] for line in scored],
                label=f"{run.name}: score",
            )
            axis.plot(
                [horizontal(line) for line in lines],
                [line["fitness_mean"] for line in lines],
                color=curve.get_color(),
                alpha=0.35,
                label=f"{run.name}: mean fitness",
            )
    by_steps.set(xlabel="million env steps", ylabel="return", title=arguments.title)
    by_time.set(xlabel="minutes")
    handles, labels = by_steps.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    for axis in (by_steps, by_time):
        axis.grid(alpha=0.3)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
