"""Pictures of long tables: a panel for each `panel`, a line for each `line`, `value` over `x`.

Where several rows have the same x, the line goes through their median, with whiskers from the lowest to the
highest; a line without x is a horizontal one. Drawn through matplotlib's objects: no state is shared with
pyplot. A PNG file holds the fingerprint of what it shows, so that a test can tell whether it is old.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from es_flipout.cli.results import Spread

SOURCE = "Source"
"""Where a PNG file has the fingerprint, in its text."""
PALE = "paler"
"""A row may have this style: its line is drawn without markers, and paler than others of its name."""
MOST_TICKS = 10
"""Of a logarithmic x axis: with more places, only every second or third has a label."""
Row = Mapping[str, Any]
"""Columns panel, line, x, value; maybe `run`, to tell lines of one name apart, and `style`."""


def fingerprint(source: object) -> str:
    """Returns what tells a document from all others."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def draw(
    path: Path,
    rows: Sequence[Row],
    source: object,
    *,
    ylabel: str,
    title: str = "",
    columns: int | None = None,
    log: bool = False,
) -> None:
    """Draws rows into a PNG file.

    Args:
        path: the file.
        rows: see `Row`; the name of a panel is the label of its x axis.
        source: what the rows were made from, to be told apart by the fingerprint.
        ylabel: of all panels.
        title: above all of them.
        columns: panels side by side; None for all of them.
        log: whether both axes are logarithmic, the x axis with (some of) its places as ticks.
    """
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    names = list(dict.fromkeys(row["line"] for row in rows))
    colors = dict(zip(names, colormaps["tab10" if len(names) <= 10 else "tab20"].colors, strict=False))
    columns = columns or len(panels)
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(max(5.5 * columns, 7.5), max(3 * height, 4.5)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(height, columns, squeeze=False, sharey="row").flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        own = [row for row in rows if row["panel"] == panel]
        for key in dict.fromkeys((row["line"], row.get("run"), row.get("style")) for row in own):
            line = [row for row in own if (row["line"], row.get("run"), row.get("style")) == key]
            _draw_line(axes, line, colors[key[0]])
        axes.set(xlabel=panel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        if log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            places = sorted({row["x"] for row in own if row["x"] is not None})
            axes.set_xticks(places[:: -(-len(places) // MOST_TICKS)] if places else [])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {str(name): handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110, metadata={SOURCE: fingerprint(source)})


def _draw_line(axes: Axes, rows: Sequence[Row], color: Any) -> None:
    name, pale = rows[0]["line"], rows[0].get("style") == PALE
    if rows[0]["x"] is None:
        spread = Spread.of([row["value"] for row in rows])
        axes.axhline(spread.median, color=color, label=name, linestyle="-.")
        axes.axhspan(spread.lowest, spread.highest, color=color, alpha=0.15)
        return
    places: dict[float, list[float]] = {}
    for row in rows:
        places.setdefault(row["x"], []).append(row["value"])
    middle = [statistics.median(values) for values in places.values()]
    low = [median - min(values) for median, values in zip(middle, places.values(), strict=True)]
    high = [max(values) - median for median, values in zip(middle, places.values(), strict=True)]
    axes.errorbar(
        list(places),
        middle,
        yerr=[low, high] if any(low) or any(high) else None,
        label=None if pale else name,
        color=color,
        alpha=0.35 if pale else 0.85,
        marker="o" if len(places) < 20 else None,
        markersize=4,
        capsize=3,
    )


def of_values(panel: str, line: str, x: float | None, values: Iterable[float]) -> list[dict[str, Any]]:
    """Returns a row for each value."""
    return [{"panel": panel, "line": line, "x": x, "value": value} for value in values]
