"""The tables and pictures of docs/benchmarks.md, made of the raw JSON in benchmarks/results/.

python -m scripts.benchmark_tables

There, a table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of TABLES.
Those of a GPU are made by benchmarks/gpu/tables.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.run import CONTESTANTS, OURS, PHYSICS, fastest_peer, rates, ratios
from es_flipout.bench.env import RATIOS
from es_flipout.bench.memory import PEAK, STEPS
from es_flipout.bench.plots import draw
from es_flipout.bench.policy import DENSE, FORWARDS, UNPERTURBED, ask, forward, gradient
from es_flipout.bench.report import Spread, spreads
from es_flipout.bench.throughput import env_steps, members
from es_flipout.bench.update import (
    FLIPOUT,
    INDEPENDENT_POOL,
    LOW_RANK,
    ONE_BASE,
    POOL,
    POOLS,
    is_extrapolated,
)
from es_flipout.cli.bench import BENCHES
from es_flipout.cli.bench_display import number
from scripts.profile_loop import PARTS, costs
from scripts.single_forward import TORCH, WORKER

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TASKS = ("HalfCheetah-v5", "Humanoid-v5")
OWN_ENVIRONMENTS = ("evotorch_vec", "evotorch_gym", "sb3_ars")
"""Modules of the peers that bring what runs Gymnasium's environments."""
Row = Sequence[str]


def path_of(name: str) -> Path:
    """Returns the path of one document of benchmarks/results."""
    return RESULTS / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """Returns one document of benchmarks/results."""
    document: dict[str, Any] = json.loads(path_of(name).read_text())
    return document


def markdown(heads: Row, rows: Sequence[Row]) -> str:
    """Returns a table whose columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def span(spread: Spread, form: Callable[[float], str] = number) -> str:
    """Returns the median, and what the rounds lie between."""
    return f"{form(spread.median)} ({form(spread.lowest)} to {form(spread.highest)})"


def throughput() -> str:
    documents = [load(f"throughput_{task}") for task in TASKS]
    heads = [""]
    for task in TASKS:
        heads += [f"{task}, env steps/s", "members/s", "efficiency or equivalent cores"]
    rows = []
    for name in documents[0]["cores"]:
        row = [name]
        for document in documents:
            found = spreads(document["rounds"])
            ratio = next(
                value for key, value in document["median_ratios"].items() if key.startswith(f"{name} /")
            )
            row += [span(found[env_steps(name)]), number(found[members(name)].median)]
            row.append(f"{ratio:.0%}" if "worker" in name else f"**{ratio:.2f} cores**")
        rows.append(row)
    return markdown(heads, rows)


def peers() -> str:
    cases = load("peers")["cases"]
    heads = ["", *(f"{case['task']}, P = {case['population']}" for case in cases)]
    rows = []
    for name in (PHYSICS, *CONTESTANTS):
        row = [name]
        for case in cases:
            rounds, contestant = case["rounds"], CONTESTANTS.get(name)
            best = fastest_peer(rounds, contestant.module) if contestant and contestant.is_peer else None
            setting = (best or name).removeprefix(name).removeprefix(", ")
            rate = f"{statistics.median(rates(rounds, best or name)):,.0f}"
            row.append(f"{rate} ({setting})" if setting else rate)
        rows.append(row)

    def lead(label: str, of: str, modules: Sequence[str]) -> list[str]:
        row = [label]
        for case in cases:
            best = [fastest_peer(case["rounds"], module) for module in modules]
            peer = max(best, key=lambda name: statistics.median(rates(case["rounds"], name)))
            row.append(span(Spread.of(ratios(case["rounds"], of, peer)), lambda value: f"{value:.2f}"))
        return row

    every_peer = [contestant.module for contestant in CONTESTANTS.values() if contestant.is_peer]
    rows += [
        lead("**ours / the fastest peer**", OURS, every_peer),
        lead("raw physics / the fastest peer", PHYSICS, every_peer),
        lead("ours / the fastest peer with environments of its own", OURS, OWN_ENVIRONMENTS),
    ]
    return markdown(heads, rows)


def update() -> str:
    return update_table(load("update_cpu")["results"])


def update_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the results of es-bench update, with or without process pools."""
    everyone = (FLIPOUT, ONE_BASE, LOW_RANK, POOL, INDEPENDENT_POOL)
    contestants = [name for name in everyone if name in results[0]["medians"]]
    ratio_names = [f"{pool} / {FLIPOUT}" for pool in POOLS if pool in contestants]
    heads = ["", "flipout, N = 40", *contestants[1:], *ratio_names, "FlipES *", "cpuES *", "ratio *"]
    rows = []
    for result in results:
        marks = {name: "~" if name in POOLS and is_extrapolated(result) else "" for name in contestants}
        gpu, cores = result["paper"].values()
        rows.append(
            [
                result["name"],
                *(marks[name] + number(result["medians"][name]) for name in contestants),
                *(number(result["median_ratios"][name]) for name in ratio_names),
                *map(number, (gpu, cores, cores / gpu)),
            ]
        )
    return markdown(heads, rows)


def _sweeps() -> list[list[dict[str, Any]]]:
    """Returns the points of es-bench policy of each kind of network, the base point first."""
    return [load(f"{name}_cpu")["results"] for name in ("policy", "policy_gru", "policy_convnet")]


def _label(point: Mapping[str, Any]) -> str:
    return f"{point['policy']}, P = {point['population_size']:,}"


def forwards() -> str:
    return forward_table(itertools.chain(*_sweeps()))


def forward_table(points: Iterable[Mapping[str, Any]]) -> str:
    """Returns the table of the forwards of points of es-bench policy."""
    others = [name for name in FORWARDS if name != UNPERTURBED]
    rows = []
    for point in points:
        found = point["median_ratios"]
        row = [_label(point), number(1e3 * point["medians"][forward(UNPERTURBED)])]
        row += [number(found[key]) if (key := f"{name} / {UNPERTURBED}") in found else "-" for name in others]
        rows.append([*row, number(found[f"{DENSE} / {others[0]}"])])
    return markdown(["", f"{UNPERTURBED}, ms", *others, f"{DENSE} / {others[0]}"], rows)


def limits() -> str:
    point = _sweeps()[0][0]
    rows = []
    for name, figures in point["achieved"].items():
        rows.append(
            [
                name,
                number(1e3 * point["medians"][name]),
                number(figures["flops_per_second"] / 1e9),
                f"{figures['share_of_flops_limit']:.0%}",
                number(figures["bytes_per_second"] / 1e9),
                f"{figures['share_of_bytes_limit']:.0%}",
            ]
        )
    return markdown([_label(point), "ms", "GFLOP/s", "of the limit", "GB/s", "of the limit"], rows)


def noise() -> str:
    families = [name for name in FORWARDS if name not in (UNPERTURBED, DENSE)]
    rows = []
    for point, *_ in _sweeps():
        row = [_label(point)]
        for operation in (ask, gradient):
            times = [point["medians"].get(operation(name)) for name in families]
            row += ["-" if seconds is None else number(1e3 * seconds) for seconds in times]
        rows.append(row)
    heads = [f"{what}, {name}, ms" for what in ("ask", "gradient") for name in families]
    return markdown(["", *heads], rows)


def memory() -> str:
    document = load("policy_memory_cpu")
    rows = []
    for result in document["results"]:
        medians = result["medians"]
        rows.append(
            [result["family"], *(number(medians[step]) for step in STEPS), f"{medians[PEAK] / 1e6:,.0f}"]
        )
    heads = f"{document['policy']}, P = {document['population_size']:,}"
    return markdown([heads, *(f"{step}, s" for step in STEPS), "memory, MB"], rows)


def env() -> str:
    rows = []
    for task in TASKS:
        document = load(f"env_{task}")
        found, ratios_found = spreads(document["rounds"]), document["ratios"]
        row = [f"{task}, P = {document['population_size']:,}"]
        row += [span(Spread.of(ratios_found[name]), lambda value: f"{value:.2f}") for name in RATIOS]
        row += [number(found[name].median) for name in ("native vector environment", "training loop")]
        rows.append(row)
    return markdown(["", *RATIOS, "native, env steps/s", "loop, env steps/s"], rows)


def profile() -> str:
    cases = [(task, slots) for task in TASKS for slots in (32, 128)]
    found = [costs(load(f"profile_{task}_{slots}")["rounds"], PARTS) for task, slots in cases]
    rows = [
        [part, *(f"{number(cost)}, {share:.1%}" for cost, share in (each[part] for each in found))]
        for part in PARTS
    ]
    return markdown(["", *(f"{task}, {slots} slots" for task, slots in cases)], rows)


def single_forward() -> str:
    rows = []
    for result in load("single_forward")["results"]:
        label = f"{result['task']}, MLP {'-'.join(map(str, result['hidden_sizes']))}"
        times = [number(1e6 * result["medians"][name]) for name in (TORCH, WORKER)]
        rows.append([label, *times, number(result["median_ratios"][f"{TORCH} / {WORKER}"])])
    return markdown(["", "torch, us", "worker (NumPy), us", "ratio"], rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in [
        throughput,
        single_forward,
        peers,
        update,
        forwards,
        limits,
        noise,
        memory,
        env,
        profile,
    ]
}


def pictures(text: str) -> dict[Path, dict[str, Any]]:
    """Returns the pictures of results that the page shows, and the document of each."""
    names = re.findall(r"!\[[^]]*\]\(\.\./benchmarks/results/([^)]+)\.png\)", text)
    return {RESULTS / f"{name}.png": load(name) for name in names}


def redraw(path: Path, document: Mapping[str, Any]) -> None:
    """Draws the picture of a document of es-bench."""
    bench = document["command"].split()[1]
    draw(path, BENCHES[bench].picture(document), document)


def with_tables(text: str, tables: Mapping[str, Callable[[], str]] = TABLES, kind: str = "table") -> str:
    """Returns the text of a page with every table of a kind made anew.

    Raises:
        KeyError: if it asks for a table that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        return f"<!-- {kind}: {match[1]} -->\n\n{tables[match[1]]()}\n\n<!-- end -->"

    return re.sub(rf"<!-- {kind}: (\w+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    text = with_tables(PAGE.read_text())
    PAGE.write_text(text)
    for path, document in pictures(text).items():
        redraw(path, document)


if __name__ == "__main__":
    main()
