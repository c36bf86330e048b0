"""The tables and the picture of docs/paper.md, made from the results in benchmarks/results/.

python -m benchmarks.paper.tables

There, a table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of TABLES.
Above it are the machine, the versions and the command of each document that it was made from.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.paper import cost, decomposition, large_batches_tables, lstm_tables
from benchmarks.paper.peers import steps, weights
from benchmarks.speed import update
from benchmarks.speed.tables import markdown
from benchmarks.tables import NOT_YET, RESULTS, ROOT, load, with_tables
from es_flipout.cli.results import Results, number

PAGE = ROOT / "docs" / "paper.md"
GPU = "gpu_h200_paper"
"""How the documents of the GPU begin."""
VARIANCES = [f"{GPU}_variance_{network}" for network in ("fc", "conv", "lstm")]
BASES = [f"paper_variance_{network}_bases" for network in ("lstm", "conv")]
GPU_BATCHES = [f"{GPU}_batches_{model}" for model in ("fc", "conv")]
CPU_BATCHES = [f"paper_large_batches_{model}" for model in ("fc", "conv")]


def measured(*names: str, make: Callable[..., str]) -> str:
    """Returns how the documents of those names were measured, and the table of all that exist.

    Args:
        names: of documents in benchmarks/results.
        make: takes the documents and returns Markdown.
    """
    documents = [load(name) for name in names if (RESULTS / f"{name}.json").exists()]
    if not documents:
        return NOT_YET
    machines = dict.fromkeys(map(machine, documents))
    commands = [re.sub(r" --json [^` ]+", "", f"`{each.settings['command']}`") for each in documents]
    return "\n\n".join([*machines, *commands, make(*documents)])


def machine(results: Results) -> str:
    """Returns what a document was measured on, and with which versions."""
    own = results.settings["machine"]
    cores = f"{own['cores']} cores of {own['processor']}"
    where = f"**{own['gpu']}**, {cores}" if "gpu" in own else f"**{cores}**, no GPU"
    packages = {f"torch {own['torch']}": None}
    for each in results.settings.get("versions", {}).values():
        packages |= {f"{name} {version}": None for name, version in each.items()}
    return f"{where}; Python {own['python']}, {', '.join(packages)}"


def together(*documents: Results) -> Results:
    """Returns the rows of all documents, without their settings."""
    return Results({}, [row for document in documents for row in document.rows])


def variance_tables(*documents: Results) -> str:
    """Returns all that `decomposition` has."""
    results = together(*documents)
    makers = (decomposition.slope_table, decomposition.term_table, decomposition.ratio_table)
    return "\n\n".join(make(results) for make in makers)


def search(results: Results) -> str:
    """Returns what was searched, and how."""
    return f"{lstm_tables.caption(results)}\n\n{lstm_tables.search_table(results)}"


def language_models(results: Results) -> str:
    """Returns the losses of language models and by how much flipout's differ."""
    if not results.where(metric=lstm_tables.TEST).rows:
        return NOT_YET  # no run has come to its end
    makers = (lstm_tables.caption, lstm_tables.table, lstm_tables.difference_table)
    return "\n\n".join(make(results) for make in makers)


def cost_tables(first: Results, *others: Results) -> str:
    """Returns what a step costs; later documents add the cases that the first does not have."""
    known = {row["case"] for row in first.rows}
    rows = [row for document in others for row in document.rows if row["case"] not in known]
    return cost.tables(Results({}, [*first.rows, *rows]))


def update_table(cpu: Results, gpu: Results) -> str:
    """Returns the seconds of an update of evolution strategies, beside those of figure 5."""
    setting = f"flipout, {cpu.settings['members_per_base']} members per base"
    pool = update.INDEPENDENT_POOL
    cores = cpu.settings["machine"]["cores"]
    rows = []
    for network, facts in cpu.settings["networks"].items():
        mark = "~" if facts["pool_samples"] != cpu.settings["samples"] else ""
        own = [
            _seconds(gpu, network, update.FLIPOUT),
            _seconds(cpu, network, update.FLIPOUT),
            mark + _seconds(cpu, network, pool),
        ]
        rows.append([network, *own, *map(number, (facts["paper"] or {}).values())])
    heads = [f"{setting}, {gpu.settings['machine']['gpu']}", f"{setting}, {cores} cores"]
    heads += [f"{pool}, {cores} cores", "*published:* FlipES, one GPU", "*published:* cpuES, 40 cores"]
    return markdown(["s per update", *heads], rows)


def _seconds(results: Results, network: str, name: str) -> str:
    values = results.where(network=network).by_round(name, update.UPDATE).values()
    return number(statistics.median(values)) if values else "-"


TABLES: dict[str, Callable[[], str]] = {
    "variance": lambda: measured(*VARIANCES, make=variance_tables),
    "variance_bases": lambda: measured(*BASES, make=variance_tables),
    "lstm_gpu": lambda: measured(f"{GPU}_lstm", make=language_models),
    "lstm_search": lambda: measured("paper_lstm_search", make=search),
    "lstm_characters": lambda: measured("paper_lstm_characters", make=language_models),
    "lstm_estimate": lambda: measured("paper_lstm_characters_estimate", make=lstm_tables.estimate_table),
    "lstm_words_estimate": lambda: measured("paper_lstm_words_estimate", make=lstm_tables.estimate_table),
    "batches_gpu": lambda: measured(*GPU_BATCHES, make=large_batches_tables.tables),
    "batches_gpu_tuning": lambda: measured(*GPU_BATCHES, make=large_batches_tables.tuning_table),
    "batches_cpu": lambda: measured(*CPU_BATCHES, make=large_batches_tables.tables),
    "cost_gpu": lambda: measured(f"{GPU}_cost", f"{GPU}_cost_loop", make=cost_tables),
    "cost_cpu": lambda: measured("paper_cost", make=cost.tables),
    "updates": lambda: measured("update_cpu", "gpu_h200_update", make=update_table),
    "peers_weights": lambda: measured("paper_peers_weights", make=weights.table),
    "peers_steps": lambda: measured("paper_peers_steps", make=steps.table),
}
PICTURES: dict[str, Callable[[], Results]] = {
    f"{GPU}_variance": lambda: together(*map(load, VARIANCES)),
}
"""What a picture in benchmarks/results shows, by its name."""


def main() -> None:
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    PAGE.write_text(with_tables(PAGE.read_text(), TABLES))
    for name, shown in PICTURES.items():
        decomposition.draw(Path(RESULTS / f"{name}.png"), shown())


if __name__ == "__main__":
    main()
