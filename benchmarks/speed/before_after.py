"""The same budget of training before and after: whole runs of two checkouts, their duration and their score.

Round i trains with seed + i. The seconds are those of the es-train command, from its start to its end. The
score is that of es-eval: the last center, in the official environment, from reset seeds that training never
saw.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import time
from pathlib import Path

from benchmarks.speed.es_train import Checkout, last_metrics
from benchmarks.speed.timing import turns
from es_flipout.cli.option_types import COUNT
from es_flipout.cli.results import Results

BEFORE, AFTER = "before", "after"
SECONDS, SCORE, STEPS = "s", "score", "env steps"
"""Metrics."""
SCORE_SEED = 3_000_000
DEFAULTS = {"rounds": 1}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--against", required=True, metavar="CHECKOUT", help="clone of the version before")
    configs = ["hopper.yaml", "walker2d.yaml", "ant.yaml"]
    option("--configs", nargs="+", default=configs, metavar="NAME", help="as for es-train")
    option("--arguments", type=shlex.split, default=[], help="further arguments of es-train, in quotes")
    option("--episodes", type=COUNT, default=100, help="of the score")


def train_and_score(checkout: Checkout, words: list[str], episodes: int) -> dict[str, float]:
    """Returns the figures of a run, by metric."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        checkout.run("train", [*words, "--out=run"], folder)
        seconds = time.perf_counter() - start
        how = ["--checkpoint=last", f"--episodes={episodes}", f"--seed={SCORE_SEED}", "--json"]
        score = json.loads(checkout.run("eval", ["run", *how], folder))
        last = last_metrics(folder / "run" / "metrics.jsonl")
        assert last is not None
        return {SECONDS: seconds, SCORE: score["mean"], STEPS: last["env_steps"]}


def measure(options: argparse.Namespace, results: Results) -> None:
    """Trains with both checkouts, configuration after configuration."""
    checkouts = {BEFORE: Checkout(Path(options.against).resolve()), AFTER: Checkout()}
    for config in options.configs:
        for index, name in turns(checkouts, options.rounds):
            words = [f"--config={config}", f"--seed={options.seed + index}", f"--threads={options.threads}"]
            figures = train_and_score(checkouts[name], [*words, *options.arguments], options.episodes)
            results.add(index, name, figures, config=config)
