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

from scipy import stats

from benchmarks import plots
from benchmarks.speed.tables import markdown
from benchmarks.tables import RESULTS, ROOT, with_tables

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
    rows = []
    for task, drawn in by_task.items():
        for key, unit, factor in (("env_steps", "million live env steps", 1e6), ("seconds", "minutes", 60)):
            for document in drawn:
                curves = [run["curve"] for run in document["runs"]]
                for number, curve in enumerate(curves if len(drawn) == 1 else [mean_curve(curves)]):
                    line = {"panel": f"{task}: {unit}", "line": document["name"], "run": number}
                    rows += [
                        {**line, "x": x / factor, "value": score}
                        for x, score in zip(curve[key], curve["score"], strict=True)
                    ]
    plots.draw(path, rows, {"documents": documents}, ylabel="score of the center", columns=2)


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
