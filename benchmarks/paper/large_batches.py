"""Large batches: how many fewer iterations flipout needs than shared weights for the same training loss.

python -m benchmarks.paper.large_batches --json FILE [--device cuda --data DIR]

Section 4.3 and appendix E.2 of the paper (arXiv 1803.04386): its fully connected network and its ConvNet,
by Bayes by Backprop and with multiplicative Gaussian noise. Every estimator is trained with its own best
learning rate: that of the lowest expected training loss in a grid, with a seed of its own. While the best
rate is at the edge of the grid, the grid grows. Processes can share the
work: the tables take several documents.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.paper import images
from benchmarks.paper.image_training import Task, train
from benchmarks.paper.large_batches_tables import LOSSES, final_loss, tables
from benchmarks.paper.models import convnet, fully_connected
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results
from es_flipout.processes import available_cores
from es_flipout.run.machine import describe_machine
from es_flipout.stochastic import Estimator, LearnedGaussian, MultiplicativeGaussian

MODELS = ("fc", "conv")
NOISES = ("bbb", "multiplicative")
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
TUNING_SEED = 1_000_000
MORE_RATES = 3
"""Most learning rates that are tried beyond the grid."""
PAPER = {"hidden": [512, 512], "channels": [32, 64], "conv_hidden": 512}
"""Sizes of the paper's networks."""
BATCHES = (4096, 8192)
"""Images in the paper's large batches."""
QUICK: dict[str, Any] = {
    "data_set": "digits",
    "hidden": [16],
    "channels": [2, 3],
    "conv_hidden": 8,
    "batch_size": 32,
    "iterations": 8,
    "tuning_iterations": 4,
    "interval": 2,
    "judged": 64,
    "draws": 1,
    "seeds": [0, 1],
}


def main(words: Sequence[str] | None = None) -> int:
    """Trains everything and returns the exit status."""
    return run_command("benchmarks.paper.large_batches", _main, words)


def _main(words: Sequence[str]) -> int:
    options, start = _parse(words), time.perf_counter()
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in convolutions by default
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "data", "quick")}
    is_papers = {name: getattr(options, name) for name in PAPER} == PAPER and options.batch_size in BATCHES
    command = shlex.join(["python", "-m", "benchmarks.paper.large_batches", *words])
    settings |= {"command": command, "paper_sizes": is_papers, "complete": False}
    try:
        own = images.load(options.data_set, options.data).to(options.device)
        settings |= {"training_images": len(own.train_y), "machine": describe_machine(options.device)}
        results, cases = Results(settings), [*itertools.product(options.models, options.noises)]
        are_complete = []
        for index, (model, noise) in enumerate(cases):
            now = time.perf_counter()
            deadline = now + (options.seconds - (now - start)) / (len(cases) - index)
            case = Case(model, noise, _task(model, noise, own, options), options, results, deadline)
            are_complete.append(case.measure())
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings["complete"] = all(are_complete)
    if options.json:
        results.write(options.json)
    print(tables(results))
    return 0


def _task(model: str, noise: str, own: images.Images, options: argparse.Namespace) -> Task:
    side = own.train_x.shape[-1]
    if model == "fc":
        make = partial(fully_connected, side**2, options.hidden)
    else:
        make = partial(convnet, side, options.channels, options.conv_hidden)
    return Task(
        make=make,
        noise=LearnedGaussian(options.initial_std) if noise == "bbb" else MultiplicativeGaussian(options.std),
        prior_std=options.prior_std,
        images=own,
        batch_size=options.batch_size,
        interval=options.interval,
        judged=options.judged,
        draws=options.draws,
        is_recorded=options.device == "cuda" and not options.eager,
    )


@dataclass(frozen=True)
class Case:
    """One network with one noise, to be trained with every estimator until a deadline."""

    model: str
    noise: str
    task: Task
    options: argparse.Namespace
    results: Results
    deadline: float

    def measure(self) -> bool:
        """Tunes every estimator and trains every seed; returns whether there was time for all of it."""
        rates = {estimator: self._tuned(estimator) for estimator in self.options.estimators}
        for seed, (estimator, by_loss) in itertools.product(self.options.seeds, rates.items()):
            for lr in dict.fromkeys(by_loss.values()):
                if time.perf_counter() > self.deadline:
                    return False
                tuned_for = [loss for loss, rate in by_loss.items() if rate == lr]
                self._train(estimator, lr, seed, self.options.iterations, tuned_for)
        return all(run["complete"] for run in self.results.where(model=self.model, noise=self.noise).rows)

    def _tuned(self, estimator: Estimator) -> dict[str, float]:
        """Returns the best learning rate for every loss, inside of the grid if possible."""
        rates, runs = sorted(self.options.lrs), dict[float, dict[str, Any]]()
        if len(rates) == 1:
            return dict.fromkeys(LOSSES[self.noise], rates[0])
        best = dict.fromkeys(LOSSES[self.noise], rates[0])
        while rates and time.perf_counter() < self.deadline:
            lr = rates.pop(0)
            runs[lr] = self._train(estimator, lr, TUNING_SEED, self.options.tuning_iterations, tuned_for=[])
            best = {loss: min(runs, key=lambda each: final_loss(runs[each], loss)) for loss in best}
            if not rates and len(runs) < len(self.options.lrs) + MORE_RATES:
                beyond = {min(runs): min(runs) / 3, max(runs): max(runs) * 3}
                rates = [beyond[rate] for rate in dict.fromkeys(best.values()) if rate in beyond]
        return best

    def _train(
        self, estimator: Estimator, lr: float, seed: int, iterations: int, tuned_for: list[str]
    ) -> dict[str, Any]:
        run = train(self.task, estimator, lr, seed, iterations, self.deadline)
        self.results.rows.append({"model": self.model, "noise": self.noise, "tuned_for": tuned_for, **run})
        if self.options.json:
            self.results.write(self.options.json)
        which = f"seed {seed}" if tuned_for else "tuning"
        losses = f"{run['cross_entropy'][0]:.3f} to {run['cross_entropy'][-1]:.3f}"
        print(
            f"{self.model}, {self.noise}, {estimator}, lr {lr:.3g}, {which}: cross entropy {losses}, "
            f"{run['iteration'][-1]} iterations, {run['seconds'][-1]:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        return run


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="benchmarks.paper.large_batches", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--data-set", choices=images.NAMES, default="fashion")
    option("--data", type=Path, metavar="DIR", help="folder with MNIST's four files, for fashion and mnist")
    option("--models", nargs="+", choices=MODELS, default=list(MODELS))
    option("--noises", nargs="+", choices=NOISES, default=list(NOISES), help="bbb: Bayes by Backprop")
    option(
        "--estimators", nargs="+", choices=ESTIMATORS, default=["shared", "flipout"], help="local: fc only"
    )
    option("--batch-size", type=COUNT, default=8192)
    option("--iterations", type=COUNT, default=500, help="of every seed")
    option("--tuning-iterations", type=COUNT, default=250, help="of every learning rate")
    option("--interval", type=COUNT, default=5, help="iterations between two estimates of the loss")
    option("--judged", type=COUNT, default=4096, help="images that estimate the expected loss")
    option("--draws", type=COUNT, default=2, help="weights for each of them")
    option(
        "--lrs", nargs="+", type=AMOUNT, default=[1e-3, 3e-3, 1e-2], help="grid; a single one is not tuned"
    )
    option("--hidden", nargs="+", type=COUNT, default=PAPER["hidden"], help="of fc")
    option("--channels", nargs="+", type=COUNT, default=PAPER["channels"], help="of conv")
    option("--conv-hidden", type=COUNT, default=PAPER["conv_hidden"], help="of conv")
    option("--std", type=AMOUNT, default=1.0, help="of the multiplicative noise")
    option("--initial-std", type=AMOUNT, default=0.05, help="of the weights in Bayes by Backprop")
    option("--prior-std", type=AMOUNT, default=1.0, help="in Bayes by Backprop")
    option("--seeds", nargs="+", type=SEED, default=[0, 1, 2])
    option("--device", choices=["cpu", "cuda"], default="cpu")
    option("--eager", action="store_true", help="no CUDA graphs")
    option("--threads", type=COUNT, default=available_cores(), help="of torch")
    option("--seconds", type=AMOUNT, default=1e9, help="limit of the whole program, shared out over cases")
    option("--json", type=Path, metavar="FILE", help="file for the results, after every run")
    option("--quick", action="store_true", help="tiny sizes, unless given")
    if "--quick" in words:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(words)
    if options.json and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json: the folder {options.json.parent} does not exist")
    if "shared" not in options.estimators:
        raise UsageError("--estimators must include shared, with which the others are compared")
    if "local" in options.estimators and "conv" in options.models:
        raise UsageError("--estimators local is for --models fc alone: it has no convolutions")
    if options.iterations < 4 * options.interval:
        raise UsageError("--interval must be at most a quarter of --iterations: thresholds are from there")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU")
    return options


if __name__ == "__main__":
    sys.exit(main())
