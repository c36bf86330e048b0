"""The GPU tables of docs/benchmarks.md, a card at a time, made from what benchmarks/gpu.sh has measured.

python -m benchmarks.gpu.tables [OUT ...]

Takes the documents of each folder OUT into benchmarks/results/ as gpu_CARD_NAME.json, and makes the tables of
all that is there. On the page, a table stands between `<!-- gpu: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare_engines import RETURN, summary
from benchmarks.speed import device
from benchmarks.speed.tables import forward_table, markdown, profile_table, update_table
from benchmarks.tables import PAGE, RESULTS, throughput_table, with_tables
from es_flipout.cli.results import Results, number
from es_flipout.cli.throughput import ENV_STEPS

NOT_YET = "*Not measured yet: it needs a GPU.*"
DOCUMENTS = ("forwards", "update", "throughput", "profile", "train", "engines")
"""What benchmarks/gpu.sh leaves, each as NAME.json."""
Document = Mapping[str, Any]


def card(document: Document) -> str:
    """Returns the GPU that a document was measured on: h100_80gb_hbm3 for NVIDIA H100 80GB HBM3.

    Raises:
        ValueError: if it was measured without a GPU.
    """
    gpu = document["machine"].get("gpu")
    if gpu is None:
        raise ValueError("it was measured without a GPU")
    return re.sub(r"\W+", "_", gpu.removeprefix("NVIDIA ")).lower()


def take(folder: Path, results: Path = RESULTS) -> list[Path]:
    """Copies the documents of a folder into the results, under the name of their card; returns the copies.

    Raises:
        ValueError: if there is none, or one was measured without a GPU; nothing is then copied.
    """
    copies: dict[Path, str] = {}
    for path in (folder / f"{name}.json" for name in DOCUMENTS):
        if path.exists():
            text = path.read_text()
            try:
                copies[results / f"gpu_{card(json.loads(text))}_{path.name}"] = text
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    if not copies:
        raise ValueError(f"{folder} holds none of {', '.join(f'{name}.json' for name in DOCUMENTS)}")
    for copy, text in copies.items():
        copy.write_text(text)
    return list(copies)


def by_card(name: str, table: Callable[[Document], str]) -> str:
    """Returns a table for each card that a document of this name is of."""
    paths = sorted(RESULTS.glob(f"gpu_*_{name}.json"))
    documents = [json.loads(path.read_text()) for path in paths]
    return "\n\n".join(f"{_heading(each)}\n\n{table(each)}" for each in documents) or NOT_YET


def _heading(document: Document) -> str:
    machine = document["machine"]
    packages = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "mujoco-warp", "warp-lang") if name in machine
    )
    command = f"\n\n`{document['command']}`" if "command" in document else ""
    return f"**{machine['gpu']}**, {machine['cores']} cores of {machine['processor']}; {packages}{command}"


def of_results(name: str, table: Callable[[Results], str]) -> Callable[[], str]:
    """Returns what makes a table of long tables for each card."""

    def of_document(document: Document) -> str:
        settings = dict(document)
        return table(Results(settings, settings.pop("rows")))

    return lambda: by_card(name, of_document)


def _train(document: Document) -> str:
    """A training run by periods."""
    rows = []
    for each in document["milestones"]:
        score = each["last_score"]
        rows.append(
            [
                f"{each['minutes']:.1f} min",
                str(each["generation"]),
                number(each["env_steps"]),
                "-" if score is None else f"{score:,.0f}",
                number(each["median_env_steps_per_second"]),
                f"{each['median_live_share']:.0%}",
            ]
        )
    table = markdown(["", "generation", "env steps", "score", ENV_STEPS, "live share"], rows)
    start = document["config"].get("init_from")
    return table if start is None else f"It begins with the policy of `{start}`.\n\n{table}"


def _engines(results: Results) -> str:
    """The trained policy on both engines."""
    rows = []
    for engine in results.column("contestant"):
        mean, error, failed = summary(results, engine)
        rows.append([engine, f"{mean:,.1f} ± {error:.1f}", str(failed)])
    episodes = len(results.by_round(rows[0][0], RETURN))
    return markdown(["", f"mean return of {episodes} episodes", "failed"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "throughput": of_results("throughput", throughput_table),
    "forwards": of_results("forwards", forward_table),
    "update": of_results("update", update_table),
    "profile": of_results("profile", lambda results: profile_table(device.PARTS, results)),
    "train": lambda: by_card("train", _train),
    "engines": of_results("engines", _engines),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", metavar="OUT", help="results of benchmarks/gpu.sh")
    for folder in parser.parse_args().folders:
        try:
            for copy in take(folder):
                print(copy)
        except ValueError as error:
            sys.exit(str(error))
    PAGE.write_text(with_tables(PAGE.read_text(), TABLES, "gpu"))


if __name__ == "__main__":
    main()
