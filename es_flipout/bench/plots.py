"""The pictures of the benches: bars for contestants, lines over a size; whiskers from lowest to highest.

Drawn by matplotlib's Agg backend through its objects: no state is shared with anybody's pyplot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

from es_flipout.bench.report import Spread


@dataclass(frozen=True)
class Bars:
    """A panel of one horizontal bar a contestant, by name."""

    xlabel: str
    bars: Mapping[str, Spread]
    log: bool = False


@dataclass(frozen=True)
class Curve:
    """A line: a spread for each place on the x axis.

    Attributes:
        points: spread at each x.
        dashed: whether it is drawn as what was not measured here.
    """

    points: Mapping[float, Spread]
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """A panel of lines over logarithmic axes, by name; `levels` are horizontal ones."""

    xlabel: str
    ylabel: str
    curves: Mapping[str, Curve]
    levels: Mapping[str, Spread] = field(default_factory=dict)


Panel = Bars | Lines


@dataclass(frozen=True)
class Picture:
    """Panels side by side under a title."""

    title: str
    panels: Sequence[Panel]


SOURCE = "Source"
"""Where a PNG file says, in its text, which document it shows."""


def fingerprint(document: Mapping[str, Any]) -> str:
    """Returns what tells a document from all others."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def draw(path: Path, picture: Picture, document: Mapping[str, Any]) -> None:
    """Draws a picture of a document into a PNG file, which holds the document's fingerprint."""
    panels = picture.panels
    width = sum(7.5 if isinstance(panel, Bars) else 5.5 for panel in panels)
    figure = Figure(figsize=(max(width, 7.5), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(picture.title, fontsize=11)
    alike = all(isinstance(panel, Lines) for panel in panels)
    every = figure.subplots(1, len(panels), squeeze=False, sharey=alike)[0]
    for axes, panel in zip(every, panels, strict=True):
        if isinstance(panel, Bars):
            _draw_bars(axes, panel)
        else:
            _draw_lines(axes, panel)
    handles: dict[str, object] = {}
    for axes in figure.axes:
        handles |= {str(name): handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8)  # type: ignore[call-overload]
    figure.savefig(path, dpi=120, metadata={SOURCE: fingerprint(document)})


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    """Returns how far the lowest and the highest are from the median."""
    below = [spread.median - spread.lowest for spread in spreads]
    above = [spread.highest - spread.median for spread in spreads]
    return [below, above]


def _draw_bars(axes: Axes, panel: Bars) -> None:
    names, spreads = list(panel.bars), list(panel.bars.values())
    axes.barh(names, [spread.median for spread in spreads], xerr=_whiskers(spreads), capsize=3)
    axes.invert_yaxis()
    if panel.log:
        axes.set_xscale("log")
    axes.set_xlabel(panel.xlabel)
    axes.grid(axis="x", alpha=0.3)


def _draw_lines(axes: Axes, panel: Lines) -> None:
    for name, curve in panel.curves.items():
        spreads = list(curve.points.values())
        style = "--" if curve.dashed else "-"
        axes.errorbar(
            list(curve.points),
            [spread.median for spread in spreads],
            yerr=_whiskers(spreads),
            label=name,
            linestyle=style,
            marker="x" if curve.dashed else "o",
            markersize=4,
            capsize=3,
        )
    for index, (name, spread) in enumerate(panel.levels.items()):
        color = f"C{len(panel.curves) + index}"
        axes.axhline(spread.median, label=name, color=color, linestyle="-.")
        axes.axhspan(spread.lowest, spread.highest, color=color, alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    places = sorted({x for curve in panel.curves.values() for x in curve.points})
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.grid(alpha=0.3, which="both")
