"""Tables of docs/paper.md: how much sooner than shared weights others get to the same training loss.

For a seed, a threshold is the lowest expected loss that shared weights reach within a fraction of their
iterations. The factor in iterations is the number of iterations in which they reach it, divided by the other
estimator's; the factor in time is that, divided by the ratio of their seconds per iteration.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.speed.tables import markdown, two_decimals
from es_flipout.cli.results import Results, number

SHARED = "shared"
FRACTIONS = (0.25, 0.5, 1.0)
"""Of the iterations of shared weights."""
PUBLISHED = 3.0
"""Factor in iterations that the paper states for its ConvNet, Bayes by Backprop, batches of 8,192 images."""
LOSSES = {"bbb": ("cross_entropy", "objective"), "multiplicative": ("cross_entropy",)}
"""Losses compared, by noise. In Bayes by Backprop, most of the objective is its divergence."""
Run = dict[str, Any]


class Lead(NamedTuple):
    """How one run compares with shared weights at one threshold.

    Attributes:
        threshold: loss.
        shared: iterations of shared weights to the threshold.
        other: iterations of the other estimator; None if it never gets there.
        slowdown: seconds per iteration, divided by those of shared weights.
    """

    threshold: float
    shared: int
    other: int | None
    slowdown: float

    @property
    def factor(self) -> float:
        """How many times fewer iterations the other estimator takes; 0 if it never gets there."""
        return self.shared / self.other if self.other else 0.0


def final_loss(run: dict[str, Any], loss: str) -> float:
    """Returns the mean of a loss in the last quarter of a run; infinity if it diverged or is incomplete."""
    last = run[loss][-math.ceil(len(run[loss]) / 4) :]
    return statistics.mean(last) if run["complete"] and all(map(math.isfinite, last)) else math.inf


def first_at(run: Run, loss: str, threshold: float) -> int | None:
    """Returns the first iteration with a loss at or below the threshold, not counting the start."""
    steps = zip(run["iteration"], run[loss], strict=True)
    return next((iteration for iteration, value in steps if iteration and value <= threshold), None)


def lead(shared: Run, other: Run, loss: str, fraction: float) -> Lead:
    """Returns how a run compares with shared weights at the threshold of a fraction of their iterations."""
    last = fraction * shared["iteration"][-1]
    steps = zip(shared["iteration"], shared[loss], strict=True)
    threshold = min(value for iteration, value in steps if 0 < iteration <= last and math.isfinite(value))
    iterations = first_at(shared, loss, threshold)
    assert iterations is not None
    return Lead(threshold, iterations, first_at(other, loss, threshold), _pace(other) / _pace(shared))


def _pace(run: Run) -> float:
    return float(run["seconds"][-1] / run["iteration"][-1])


def leads(results: Results, estimator: str, loss: str, fraction: float) -> list[Lead]:
    """Returns the leads of one case, for every seed with two complete runs."""
    runs = [run for run in results.rows if loss in run["tuned_for"] and run["complete"]]
    shared, others = (
        {run["seed"]: run for run in runs if run["estimator"] == name} for name in (SHARED, estimator)
    )
    return [lead(shared[seed], others[seed], loss, fraction) for seed in shared if seed in others]


def tables(*documents: Results) -> str:
    """Returns the factors in all documents: medians over seeds, and their range."""
    heads = ["network, noise, batch", "estimator (learning rates)", "loss", "after"]
    heads += ["shared's iterations", "loss there", "factor in iterations", "factor in time"]
    rows = []
    for document in documents:
        keys = dict.fromkeys((run["model"], run["noise"], run["estimator"]) for run in document.rows)
        for model, noise, estimator in keys:
            if estimator != SHARED:
                case = document.where(model=model, noise=noise)
                rows += _rows(
                    f"{model}, {noise}, {document.settings['batch_size']:,}", case, noise, estimator
                )
    published = ["*published:* conv, bbb, 8,192", "flipout", "training loss", "-", "-", "-"]
    return markdown(heads, [*rows, [*published, f"about {PUBLISHED:g}", "-"]])


def tuning_table(*documents: Results) -> str:
    """Returns the factors in cross entropy of the runs that tuned the learning rates, each at its best one.

    They have one seed, the one that chose the rates, and are shorter.
    """
    loss, rows = "cross_entropy", []
    heads = ["network, noise, batch", "iterations", "shared: rate, lowest cross entropy"]
    heads += ["after", "estimator: rate, cross entropy at the end", "as low as shared's after"]
    for document in documents:
        runs = [run for run in document.rows if not run["tuned_for"] and run["complete"]]
        for model, noise in dict.fromkeys((run["model"], run["noise"]) for run in runs):
            own = [run for run in runs if (run["model"], run["noise"]) == (model, noise)]
            best = {
                name: min(
                    (run for run in own if run["estimator"] == name), key=lambda run: final_loss(run, loss)
                )
                for name in dict.fromkeys(run["estimator"] for run in own)
            }
            shared = best.pop(SHARED)
            for name, run in best.items():
                found = lead(shared, run, loss, 1.0)
                label = f"{model}, {noise}, {document.settings['batch_size']:,}"
                row = [
                    label,
                    f"{shared['iteration'][-1]:,}",
                    f"{shared['lr']:.2g}: {number(found.threshold)}",
                ]
                row += [f"{found.shared:,}", f"{name} {run['lr']:.2g}: {number(run[loss][-1])}"]
                rows.append([*row, f"{found.other:,}" if found.other else "-", number(found.factor)])
    return markdown([*heads, "factor in iterations"], rows)


def _rows(label: str, case: Results, noise: str, estimator: str) -> list[list[str]]:
    rows = []
    for loss, fraction in itertools.product(LOSSES[noise], FRACTIONS):
        if found := leads(case, estimator, loss, fraction):
            iterations = statistics.median(each.shared for each in found)
            threshold = statistics.median(each.threshold for each in found)
            cells = [
                label,
                f"{estimator} ({_rates(case, estimator, loss)})",
                loss.replace("_", " "),
                f"{fraction:.0%}",
            ]
            rows.append([*cells, f"{iterations:,.0f}", number(threshold), *_factors(found)])
    return rows


def _rates(case: Results, estimator: str, loss: str) -> str:
    rates = {run["estimator"]: run["lr"] for run in case.rows if loss in run["tuned_for"]}
    return f"{rates[estimator]:.2g}, shared {rates[SHARED]:.2g}"


def _factors(found: Sequence[Lead]) -> list[str]:
    missed = sum(each.other is None for each in found)
    if missed:
        return [f"not reached by {missed} of {len(found)}"] * 2
    return [
        two_decimals([each.factor for each in found]),
        two_decimals([each.factor / each.slowdown for each in found]),
    ]
