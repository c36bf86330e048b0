"""Makes the tables and learning curves of docs/results.md from the JSON of `scripts.train_suite`.

python -m scripts.suite_report

A table there stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; NAME is the name of a suite.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from scipy import stats

from es_flipout.bench.plots import SOURCE, fingerprint
from scripts.benchmark_tables import RESULTS, ROOT, markdown, with_tables

PAGE = ROOT / "docs" / "results.md"
SUITES = ROOT / "scripts" / "suites"
CONFIDENCE = 0.95
Document = Mapping[str, Any]


def documents_of(suite: str) -> list[Document]:
    """Returns the results of those configurations of a suite that have any."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train_*.json"))]
    return [document for document in documents if document.get("suite") == suite]


def picture_of(suite: str) -> Path:
    """Returns the path of the picture of a suite's learning curves."""
    return RESULTS / f"suite_{suite}.png"


def scores(document: Document) -> list[float]:
    """Returns the score of every seed."""
    return [run["score"] for run in document["runs"]]


def half_width(values: Sequence[float]) -> float:
    """Returns half the width of the 95% confidence interval of a mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)


def table(documents: Sequence[Document]) -> str:
    """Returns a table in Markdown, one row per configuration."""
    heads = ["", "env steps", "minutes a run", "seeds", "score", "95 % interval", "each seed", "published"]
    rows = []
    for document in documents:
        runs, found = document["runs"], scores(document)
        steps = statistics.fmean(run["env_steps"] for run in runs) / 1e6
        unfinished = "" if all(run["finished"] for run in runs) else " (unfinished)"
        rows.append(
            [
                f"{document['name']}, {document['config']['env']['id']}",
                f"{steps:.2f} M{unfinished}",
                f"{statistics.fmean(run['seconds'] for run in runs) / 60:.1f}",
                str(len(runs)),
                f"**{statistics.fmean(found):.1f}**",
                "-" if len(found) < 2 else f"± {half_width(found):.1f}",
                ", ".join(f"{score:.1f}" for score in found),
                document["published"] or "-",
            ]
        )
    return markdown(heads, rows)


def plot(documents: Sequence[Document], path: Path) -> None:
    """Draws the score over live env steps and over training time, one row per task.

    A line is one seed or, if configurations of one task are compared, the mean over seeds.
    """
    by_task: dict[str, list[Document]] = {}
    for document in documents:
        by_task.setdefault(document["config"]["env"]["id"], []).append(document)
    figure, grid = plt.subplots(
        len(by_task), 2, figsize=(12, 3 * len(by_task)), squeeze=False, layout="constrained"
    )
    for (task, drawn), axes in zip(by_task.items(), grid, strict=True):
        for axis, key, unit in zip(axes, ("env_steps", "seconds"), (1e6, 60), strict=True):
            for index, document in enumerate(drawn):
                lines = [run["curve"] for run in document["runs"]]
                for number, line in enumerate(lines if len(drawn) == 1 else [mean_curve(lines)]):
                    axis.plot(
                        [value / unit for value in line[key]],
                        line["score"],
                        color=plt.get_cmap("tab20")(index),
                        alpha=0.7,
                        label=document["name"] if number == 0 else None,
                    )
            axis.grid(alpha=0.3)
        axes[0].set(title=task, ylabel="score")
        axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    grid[-1][0].set(xlabel="million env steps")
    grid[-1][1].set(xlabel="minutes of training")
    figure.savefig(path, dpi=100, metadata={SOURCE: fingerprint({"documents": documents})})
    plt.close(figure)


def mean_curve(curves: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Returns the mean curve of runs scored in the same generations, up to the end of the shortest."""
    return {
        key: [statistics.fmean(values) for values in zip(*(curve[key] for curve in curves), strict=False)]
        for key in curves[0]
    }


def _table_of(suite: str) -> str:
    return table(documents_of(suite))


RUN = [path.stem for path in sorted(SUITES.glob("*.yaml")) if documents_of(path.stem)]
"""The suites with results."""
TABLES = {suite: partial(_table_of, suite) for suite in RUN}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(with_tables(PAGE.read_text(), TABLES))
    for suite in RUN:
        plot(documents_of(suite), picture_of(suite))


if __name__ == "__main__":
    main()
