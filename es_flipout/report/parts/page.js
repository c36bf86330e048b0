"use strict";
// Draws the figures in the colors of the page. A trace says its group and its role; how these look is said here.

const axisOfCurves = () => document.querySelector("input[name=axis]:checked").value;
const hiddenGroups = new Set();
const NUM_COLORS = 6;
const ROW = 46;

function pageColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function faded(color, alpha) {
  return color + Math.round(alpha * 255).toString(16).padStart(2, "0");
}

function styled(trace) {
  const { group, role } = trace.meta;
  const color = pageColor(`--group-${group % NUM_COLORS}`);
  const dash = group < NUM_COLORS ? "solid" : "dash";
  const looks = {
    band: { fill: "toself", fillcolor: faded(color, 0.18), line: { width: 0 }, hoverinfo: "skip", hovertemplate: null },
    run: { line: { color: faded(color, 0.5), width: 1, dash }, marker: { color, size: 5 } },
    single: { line: { color, width: 2, dash }, marker: { color, size: 6 } },
    mean: { line: { color, width: 2.5, dash }, marker: { color, size: 6 } },
    episodes: { marker: { color: faded(color, 0.6), size: 7 } },
    average: { marker: { color, size: 13, symbol: "diamond", line: { color: pageColor("--card"), width: 1.5 } } },
  };
  const look = looks[role];
  if (trace.error_x) look.error_x = { ...trace.error_x, color, thickness: 2.5, width: 6 };
  return { ...trace, ...look, visible: !hiddenGroups.has(group), showlegend: false };
}

function layoutOf(figure, axis) {
  const line = pageColor("--line");
  const lines = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: false };
  const layout = {
    paper_bgcolor: pageColor("--card"),
    plot_bgcolor: pageColor("--card"),
    font: { color: pageColor("--text"), family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { bgcolor: pageColor("--page"), bordercolor: line, font: { color: pageColor("--text") } },
    hovermode: "closest",
    margin: { l: 44, r: 10, t: 8, b: 40 },
    xaxis: { ...lines, title: { text: figure.rows ? "return" : figure.views[axis].title, standoff: 8 } },
    yaxis: { ...lines, exponentformat: "SI", minexponent: 5, ...figure.yaxis },
    uirevision: axis,
  };
  if (figure.rows) {
    const places = figure.rows.map((_, row) => row);
    const ends = [figure.rows.length - 0.5, -0.5];
    Object.assign(layout.yaxis, { tickvals: places, ticktext: figure.rows, range: ends, zeroline: false });
  }
  return layout;
}

function draw(plot) {
  const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
  const axis = axisOfCurves();
  const traces = figure.rows ? figure.traces : figure.views[axis].traces;
  if (figure.rows) plot.style.height = `${70 + ROW * figure.rows.length}px`;
  return Plotly.react(plot, traces.map(styled), layoutOf(figure, axis), {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  });
}

function drawAll() {
  document.querySelectorAll(".plot").forEach(draw);
}

document.querySelectorAll(".legend button").forEach((button) => {
  button.addEventListener("click", () => {
    const group = Number(button.dataset.group);
    if (!hiddenGroups.delete(group)) hiddenGroups.add(group);
    button.setAttribute("aria-pressed", String(!hiddenGroups.has(group)));
    drawAll();
  });
});
document.querySelectorAll("input[name=axis]").forEach((input) => input.addEventListener("change", drawAll));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
