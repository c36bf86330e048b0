"""The tables of LSTM regularization, in Markdown, beside the paper's figures."""

from __future__ import annotations

import statistics

from benchmarks.paper.lstm_model import METHODS
from benchmarks.speed.tables import markdown
from es_flipout.cli.results import Results, Spread, number

TRAINING, LAST = "training loss", "validation loss"
"""Metrics of an epoch, bits per character or perplexity; training loss is that under noise."""
VALIDATION, TEST, BEST = "validation loss of the best epoch", "test loss of the best epoch", "best epoch"
"""Metrics of a run."""
ITERATION = "s per iteration"
PUBLISHED: dict[str, dict[str, float]] = {
    "characters": {"none": 1.423, "shared": 1.230, "flipout": 1.227},
    "words": {"none": 128.97, "shared": 75.71, "flipout": 73.20},
}
"""Test losses of the paper's models: 1,000 units, and two layers of 650."""
UNITS = {"characters": "bits per character", "words": "perplexity"}
PURPOSES = {"train": "training", "valid": "validation", "test": "test"}
"""Of the parts of the text."""
DIGITS = {"characters": 3, "words": 2}


def best_setting(search: Results, method: str) -> tuple[float, float]:
    """Returns the rate and strength of a method with the lowest validation loss, the median over seeds.

    Raises:
        ValueError: if the search has no finished run of the method.
    """
    rows = search.where(contestant=method, metric=VALIDATION).rows
    if not rows:
        raise ValueError(f"no run of method {method} came to an end in the search")
    settings = {(row["rate"], row["strength"]) for row in rows}
    return min(
        sorted(settings),
        key=lambda pair: statistics.median(_values(search, method, VALIDATION, *pair).values()),
    )


def _values(results: Results, method: str, metric: str, rate: float, strength: float) -> dict[int, float]:
    return results.where(rate=rate, strength=strength).by_round(method, metric)


def _last_epochs(results: Results, method: str, metric: str) -> list[float]:
    own = results.where(contestant=method, metric=metric)
    return [own.where(round=seed).rows[-1]["value"] for seed in own.column("round")]


def losses(results: Results, values: list[float], sign: str = "") -> str:
    """Returns the median, and in brackets what the values lie between if there are several."""
    digits = DIGITS[results.settings["options"]["task"]]
    median, lowest, highest = (f"{value:{sign}.{digits}f}" for value in Spread.of(values))
    return f"{median} ({lowest} to {highest})" if len(values) > 1 else median


def _methods(results: Results) -> list[str]:
    return [method for method in METHODS if method in results.column("contestant")]


def caption(results: Results) -> str:
    """Returns what was trained, on what text, and how to read the table."""
    options, text = results.settings["options"], results.settings["text"]
    parts = [f"{text[split]:,} for {what}" for split, what in PURPOSES.items()]
    layers = f"{options['layers']} x {options['units']}" if options["layers"] > 1 else str(options["units"])
    noise = {"gaussian": "multiplicative Gaussian noise", "dropconnect": "DropConnect"}[options["noise"]]
    seeds = ", ".join(map(str, sorted(results.column("round"))))
    ended = "" if results.settings["complete"] else ", stopped by the limit of time"
    return (
        f"{layers} units, {noise}; {options['task']}: {', '.join(parts)}; "
        f"batches of {options['batch']} sequences of {options['length']}; seeds {seeds}{ended}. "
        f"Losses are {UNITS[options['task']]}, with the mean weights but for training; "
        "test is that of the epoch with the best validation. "
        "Medians over seeds, lowest to highest in parentheses."
    )


def table(results: Results) -> str:
    """Returns a row for each method: medians over seeds, and what they lie between."""
    task = results.settings["options"]["task"]
    heads = ["", "rate, strength", "test", "validation", "best epoch", "last validation", "last training"]
    rows = []
    for method in _methods(results):
        own = results.where(contestant=method)
        if not own.where(metric=TEST).rows:
            continue
        first = own.rows[0]
        epochs = max(row["epoch"] or 0 for row in own.rows)
        best = [f"{value:.3g}" for value in own.spread(method, BEST)]
        seconds = own.where(metric=ITERATION).rows
        rows.append(
            [
                method,
                f"{first['rate']:g}, {first['strength']:g}" if method != "none" else f"{first['rate']:g}",
                *(losses(results, [*own.by_round(method, metric).values()]) for metric in (TEST, VALIDATION)),
                f"{best[0]} ({best[1]} to {best[2]}) of {epochs:.3g}",
                *(losses(results, _last_epochs(own, method, metric)) for metric in (LAST, TRAINING)),
                number(1e3 * statistics.median(row["value"] for row in seconds)) if seconds else "-",
                losses(results, [PUBLISHED[task][method]]) if method in PUBLISHED[task] else "-",
            ]
        )
    return markdown([*heads, "ms per iteration", f"paper: test, {UNITS[task]}"], rows)


def difference_table(results: Results) -> str:
    """Returns by how much flipout's test loss differs from that of the others, seed by seed."""
    flipout = results.by_round("flipout", TEST)
    rows = []
    for method in _methods(results):
        own = results.by_round(method, TEST)
        differences = [flipout[seed] - own[seed] for seed in own if seed in flipout]
        if method != "flipout" and differences:
            lower = sum(value < 0 for value in differences)
            rows.append([method, losses(results, differences, sign="+"), f"{lower} of {len(differences)}"])
    return markdown(["flipout minus", "test loss", "seeds where flipout is lower"], rows)


def search_table(results: Results) -> str:
    """Returns a row for each setting of a search, the best of each method in bold."""
    rows = []
    for method in _methods(results):
        finished = results.where(contestant=method, metric=VALIDATION).rows
        best = best_setting(results, method) if finished else None
        for pair in dict.fromkeys((row["rate"], row["strength"]) for row in finished):
            values = losses(results, [*_values(results, method, VALIDATION, *pair).values()])
            rows.append(
                [method, *(f"{value:g}" for value in pair), f"**{values}**" if pair == best else values]
            )
    return markdown(["", "rate", "strength", "validation loss"], rows)


def estimate_table(results: Results) -> str:
    """Returns what the paper's sizes would take on the machine of the results."""
    rows = [
        [
            method,
            number(1e3 * each[ITERATION]),
            f"{each['iterations per epoch']:,.0f}",
            number(each["hours"] / each["epochs"]),
            f"{number(each['hours'])} ({each['epochs']:.0f} epochs)",
        ]
        for method, each in results.settings["estimate"].items()
    ]
    return markdown(["", "ms per iteration", "iterations per epoch", "hours per epoch", "hours"], rows)
