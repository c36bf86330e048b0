"""What the variances of `benchmarks.paper.variance` come to: slopes, and α, β and γ of theorem 2.

A slope is that of log Var(G) over log N, by least squares over all sizes N. α, β and γ are fitted to

    α / N + (N - 1) / N (β + γ) of shared,     α / N + (N - 1) / N β of flipout,     α / N of independent

with the same α for all. Squared relative errors are minimized, each in units of the median over runs. Large N
determine β well (at N = 8,192 the term α / N is small); pairs of examples, N = 2, would need thousands
of times as many gradients. Every run is fitted by itself, which gives a median and a 90 % interval of runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots
from benchmarks.speed.tables import markdown
from es_flipout.cli.results import Results, number

VARIANCE = "variance of the gradient of a weight"
"""Metric."""
Floats = NDArray[np.float64]
ALPHA, BETA, GAMMA = "α", "β", "γ"
TERMS = {"shared": (1, 1), "flipout": (1, 0), "independent": (0, 0)}
"""Whether β and γ are in the variance of an estimator; local reparametrization has another α."""


def interval(values: Sequence[float] | Floats) -> tuple[float, float, float]:
    """Returns the median, and the 5 % and 95 % quantiles."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.05, 0.5, 0.95])
    return float(middle), float(low), float(high)


def variances(results: Results, layer: str, estimator: str) -> tuple[Floats, Floats]:
    """Returns the sizes [S] and the variances [runs, S] of the runs that have all sizes."""
    own = results.where(layer=layer, contestant=estimator, metric=VARIANCE)
    sizes = own.column("size")
    by_size = [own.where(size=size).by_round(estimator, VARIANCE) for size in sizes]
    runs = sorted(set.intersection(*(set(each) for each in by_size)))
    return np.array(sizes, np.float64), np.array([[each[run] for each in by_size] for run in runs])


def slopes(sizes: Floats, values: Floats) -> Floats:
    """Returns the slope of the log of each row, [runs]."""
    x = np.log(sizes) - np.log(sizes).mean()
    return np.asarray(np.log(values) @ x / (x @ x))


def fitted(measured: dict[str, tuple[Floats, Floats]]) -> tuple[dict[str, Floats], float]:
    """Fits theorem 2.

    Args:
        measured: sizes and variances by estimator, of those in TERMS; see `variances`.

    Returns:
        α, β and γ, [runs] each; and the largest relative error of a median over runs.
    """
    design, found, medians = [], [], []
    for name, (sizes, values) in measured.items():
        with_beta, with_gamma = TERMS[name]
        others = (sizes - 1) / sizes
        design.append(np.stack([1 / sizes, with_beta * others, with_gamma * others], axis=1))
        found.append(values)
        medians.append(np.median(values, axis=0))
    middle = np.concatenate(medians)
    runs = min(len(each) for each in found)
    relative = np.concatenate(design) / middle[:, None]
    y = np.concatenate([each[:runs] for each in found], axis=1) / middle
    terms = np.linalg.lstsq(relative, y.T, rcond=None)[0]
    error = np.abs(relative @ np.linalg.lstsq(relative, np.ones(len(middle)), rcond=None)[0] - 1).max()
    return dict(zip((ALPHA, BETA, GAMMA), terms, strict=True)), float(error)


def slope_table(results: Results, up_to: int = 256) -> str:
    """Returns the slopes of every layer: over all sizes, and flipout's over those up to a limit."""
    estimators = results.column("contestant")
    rows = []
    for layer in results.column("layer"):
        names = results.where(layer=layer).column("contestant")
        measured = {name: variances(results, layer, name) for name in names}
        row = [layer, str(min(len(values) for _, values in measured.values()))]
        for name in estimators:
            row.append(_with_interval("{:.3f}", slopes(*measured[name])) if name in names else "-")
        sizes, values = measured["flipout"]
        few = sizes <= up_to
        row.append(_with_interval("{:.3f}", slopes(sizes[few], values[:, few])))
        rows.append(row)
    return markdown(["slope", "runs", *estimators, f"flipout, N up to {up_to}"], rows)


def term_table(results: Results) -> str:
    """Returns α, and β and γ in units of α, of every layer."""
    rows = []
    for layer in results.column("layer"):
        names = [name for name in results.where(layer=layer).column("contestant") if name in TERMS]
        terms, error = fitted({name: variances(results, layer, name) for name in names})
        ratios = [_with_interval("{:.1e}", terms[name] / terms[ALPHA]) for name in (BETA, GAMMA)]
        beta = interval(terms[BETA] / terms[ALPHA])[0]
        bend = number(1 / beta) if beta > 0 else "-"
        rows.append([layer, number(interval(terms[ALPHA])[0]), *ratios, bend, f"{error:.0%}"])
    heads = [ALPHA, f"{BETA} / {ALPHA}", f"{GAMMA} / {ALPHA}", f"{ALPHA} / {BETA}", "error of the fit"]
    return markdown(["", *heads], rows)


def _with_interval(form: str, values: Floats) -> str:
    """Returns the median, and in parentheses the 90 % interval if there are several values."""
    middle, low, high = map(form.format, interval(values))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def ratio_table(results: Results) -> str:
    """Returns the variance of the others in units of flipout's, medians, at the smallest and largest size."""
    rows = []
    others = [name for name in results.column("contestant") if name != "flipout"]
    for layer in results.column("layer"):
        base = _medians(results, layer, "flipout")
        shown = (min(base), max(base))
        row = [f"{layer}, N up to {shown[1]:,}"]
        for name in others:
            own = _medians(results, layer, name)
            row += [number(own[size] / base[size]) if size in own else "-" for size in shown]
        rows.append(row)
    heads = [f"{name} / flipout, {which} N" for name in others for which in ("smallest", "largest")]
    return markdown(["", *heads], rows)


def _medians(results: Results, layer: str, estimator: str) -> dict[int, float]:
    own = results.where(layer=layer, contestant=estimator)
    sizes = own.column("size") if own.rows else []
    return {
        size: statistics.median(own.where(size=size).by_round(estimator, VARIANCE).values()) for size in sizes
    }


def draw(path: Path, results: Results) -> None:
    """Draws figure 1: medians over the size of the mini-batch, with whiskers of 90 %."""
    rows = []
    for layer in results.column("layer"):
        for name in results.where(layer=layer).column("contestant"):
            sizes, values = variances(results, layer, name)
            for index, size in enumerate(sizes):
                rows += plots.of_values(f"{layer}: mini-batch", name, float(size), interval(values[:, index]))
    plots.draw(path, rows, results.rows, ylabel=VARIANCE, columns=3, log=True)
