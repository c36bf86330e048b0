"""Runs of language models that share a process or a GPU, one iteration each in turn.

On CPUs, several processes have a share of the runs each. An error ends only its own run; the limit of time
ends all of them after about the same number of iterations.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.paper.lstm_model import Regularization, Shape
from benchmarks.paper.lstm_run import Clock, Epoch, Run, Training
from benchmarks.paper.lstm_tables import BEST, ITERATION, LAST, TEST, TRAINING, VALIDATION
from benchmarks.paper.text import Text, load_characters, load_words
from es_flipout.cli.arguments import UsageError

COST = {"none": 1.0, "shared": 1.2, "variational": 1.5, "flipout": 3.0}
"""About what an iteration costs, to share runs out among processes."""
RESERVE = 1.5
"""Time that is kept for the last validation and the test, in units of what they are expected to take."""
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


def load_text(options: argparse.Namespace) -> Text:
    """Returns the whole text of the task."""
    load = load_characters if options.task == "characters" else load_words
    try:
        return load(data=options.data)
    except ValueError as error:
        raise UsageError(str(error)) from None


def part_of(text: Text, options: argparse.Namespace) -> Text:
    """Returns the first tokens of each part, as many as asked for."""
    return replace(
        text,
        train=text.train[: options.train_tokens],
        valid=text.valid[: options.valid_tokens],
        test=text.test[: options.test_tokens],
    )


def shares(settings: Sequence[Setting], processes: int) -> list[list[Setting]]:
    """Deals the runs out, the costly ones first, each to the process with the least to do."""
    dealt: list[list[Setting]] = [[] for _ in range(processes)]
    for setting in sorted(settings, key=lambda each: -COST[each.method]):
        min(dealt, key=lambda own: sum(COST[each.method] for each in own)).append(setting)
    return [own for own in dealt if own]


def make_run(options: argparse.Namespace, setting: Setting, text: Text) -> Run:
    """Returns the run of a setting at its beginning."""
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
        if run := attempt(setting, lambda setting=setting: make_run(options, setting, text)):
            runs[setting] = run
    start, going = time.monotonic(), list(runs)
    while going:
        reserve = RESERVE * sum(run.evaluation_seconds for run in runs.values())
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
    train(options, settings, part_of(load_text(options), options), clock, reports.put)
    reports.put(None)


def train_side_by_side(
    options: argparse.Namespace,
    settings: Sequence[Setting],
    clock: Clock,
    report: Callable[[Report], None],
    while_waiting: Callable[[], None],
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
        at_work = len(workers)
        while at_work and clock.left > -GRACE:
            while_waiting()
            are_alive = any(worker.is_alive() for worker in workers)
            try:
                received = reports.get(timeout=0.5)
            except queue.Empty:
                at_work *= are_alive
                continue
            if received is None:
                at_work -= 1
            else:
                report(received)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
