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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.throughput import ENV_STEPS, MEMBERS, MEMORY, PHYSICS, TRAINING
from es_flipout.bench.report import Spread
from es_flipout.bench.throughput import pool_name
from es_flipout.cli.bench_display import number
from scripts.benchmark_tables import PAGE, RESULTS, forward_table, markdown, span, update_table, with_tables
from scripts.profile_device import PARTS
from scripts.profile_loop import costs

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


def forwards() -> str:
    """Forwards of a population."""
    return by_card("forwards", lambda document: forward_table(document["results"]))


def update() -> str:
    """Updates of the paper's networks."""
    return by_card("update", lambda document: update_table(document["results"]))


def throughput() -> str:
    """Live env steps per second by number of envs, and the process pools beside them."""
    return by_card("throughput", _throughput)


def _throughput(document: Document) -> str:
    rows: Sequence[Mapping[str, Any]] = document["rows"]

    def values(contestant: str, metric: str, num_envs: int | None = None) -> list[float]:
        """Of all rounds, those of one number of envs if it is given."""
        return [
            row["value"]
            for row in rows
            if (row["contestant"], row["metric"]) == (contestant, metric)
            and num_envs in (None, row["num_envs"])
        ]

    def over(one: Sequence[float], other: Sequence[float]) -> Spread:
        return Spread.of([x / y for x, y in zip(one, other, strict=True)])

    lines = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        if name not in (TRAINING, PHYSICS):
            rate, members = (Spread.of(values(name, metric)) for metric in (ENV_STEPS, MEMBERS))
            lines.append([name, span(rate), number(members.median), "", "", "", ""])
    for num_envs in sorted({row["num_envs"] for row in rows if row["metric"] == ENV_STEPS}):
        rates, physics, one = (
            values(name, ENV_STEPS, num_envs) for name in (TRAINING, PHYSICS, pool_name(1))
        )
        ratio = span(over(rates, physics), lambda value: f"{value:.2f}")
        [memory] = values(TRAINING, MEMORY, num_envs)
        lines.append(
            [
                f"{num_envs:,} envs, {TRAINING}",
                span(Spread.of(rates)),
                number(Spread.of(values(TRAINING, MEMBERS, num_envs)).median),
                f"**{span(over(rates, one))}**",
                number(Spread.of(physics).median),
                ratio,
                number(memory / 1e9),
            ]
        )
    heads = ["", ENV_STEPS, MEMBERS, "equivalent cores", f"{PHYSICS}, {ENV_STEPS}", "ratio", "GPU memory, GB"]
    return markdown(heads, lines)


def profile() -> str:
    """Where a generation's time goes."""
    return by_card("profile", _profile)


def _profile(document: Document) -> str:
    found = costs(document["rounds"], PARTS)
    rows = [[part, number(cost), f"{share:.1%}"] for part, (cost, share) in found.items()]
    return markdown(["", "microseconds per env step", "share"], rows)


def train() -> str:
    """A training run by periods."""
    return by_card("train", _train)


def _train(document: Document) -> str:
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
    table = markdown(["", "generation", "env steps", "center score", ENV_STEPS, "live share"], rows)
    start = document["config"].get("init_from")
    return table if start is None else f"It begins with the policy of `{start}`.\n\n{table}"


def engines() -> str:
    """The trained policy on both engines."""
    return by_card("engines", _engines)


def _engines(document: Document) -> str:
    rows = [
        [name, f"{each['mean']:,.1f} ± {each['standard_error']:.1f}", str(each["failed"])]
        for name, each in document["engines"].items()
    ]
    episodes = len(next(iter(document["engines"].values()))["returns"])
    return markdown(["", f"mean return of {episodes} episodes", "failed"], rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table for table in (throughput, forwards, update, profile, train, engines)
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
