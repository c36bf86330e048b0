"""The tables and pictures of docs/benchmarks.md, made from the results in benchmarks/results/.

python -m benchmarks.tables

There, a table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of TABLES.
Those of a GPU are made by `benchmarks.gpu.tables`, from the same functions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.peers.run import CONTESTANTS, OURS, PHYSICS, fastest_peer
from benchmarks.speed import loop, policy, update
from benchmarks.speed.tables import (
    before_after_table,
    configs_table,
    env_table,
    forward_table,
    limits_table,
    markdown,
    memory_table,
    noise_table,
    physics_table,
    points,
    profile_table,
    single_forward_table,
    startup_table,
    two_decimals,
    update_table,
)
from es_flipout.cli import benching
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TASKS = ("HalfCheetah-v5", "Humanoid-v5")
OWN_ENVIRONMENTS = ("evotorch_vec", "evotorch_gym", "sb3_ars")
"""Modules of the peers that bring what runs Gymnasium's environments."""


def load(name: str) -> Results:
    """Returns the results of that name in benchmarks/results."""
    return Results.read(RESULTS / f"{name}.json")


NOT_YET = "*Not measured yet.*"


def if_measured(name: str, make: Callable[[Results], str]) -> str:
    """Returns the table of the results of that name, or that there are none."""
    return make(load(name)) if (RESULTS / f"{name}.json").exists() else NOT_YET


def throughput_table(*documents: Results) -> str:
    """Returns the table of es-bench throughput, tasks side by side."""
    tables = [benching.table(each) for each in documents]
    lines = [
        [one[0], *(cell for line in (one, *others) for cell in line[1:])]
        for one, *others in zip(*tables, strict=True)
    ]
    if len(documents) > 1:
        heads = [
            f"{task}, {ENV_STEPS}" if head == ENV_STEPS else head
            for task, table in zip((each.settings["env"] for each in documents), tables, strict=True)
            for head in table[0][1:]
        ]
        lines[0] = ["", *heads]
    return markdown(lines[0], lines[1:])


def peers_table(results: Results) -> str:
    """Returns the comparison with other libraries, a column for each task and population."""
    cases = {
        (task, size): results.where(task=task, population=size)
        for task in results.column("task")
        for size in results.column("population")
    }
    rows = []
    for name in (PHYSICS, *CONTESTANTS):
        row = [name]
        for case in cases.values():
            contestant = CONTESTANTS.get(name)
            best = fastest_peer(case, contestant.module) if contestant and contestant.is_peer else None
            setting = (best or name).removeprefix(name).removeprefix(", ")
            rate = f"{case.spread(best or name, ENV_STEPS).median:,.0f}"
            row.append(f"{rate} ({setting})" if setting else rate)
        rows.append(row)

    def lead(label: str, of: str, modules: Sequence[str]) -> list[str]:
        row = [label]
        for case in cases.values():
            best = [peer for module in modules if (peer := fastest_peer(case, module))]
            peer = max(best, key=lambda name: case.spread(name, ENV_STEPS).median)
            row.append(two_decimals(case.ratios((of, ENV_STEPS), (peer, ENV_STEPS))))
        return row

    ours, bare = (OURS, ENV_STEPS), (PHYSICS, ENV_STEPS)
    every_peer = [contestant.module for contestant in CONTESTANTS.values() if contestant.is_peer]
    rows += [
        lead("**ours / the fastest peer**", OURS, every_peer),
        lead("raw physics / the fastest peer", PHYSICS, every_peer),
        ["ours / raw physics", *(two_decimals(case.ratios(ours, bare)) for case in cases.values())],
        lead("ours / the fastest peer with environments of its own", OURS, OWN_ENVIRONMENTS),
    ]
    return markdown(["", *(f"{task}, P = {size}" for task, size in cases)], rows)


SWEEPS = ("policy_cpu", "policy_gru_cpu", "policy_convnet_cpu")
PROFILES = [f"profile_{task}_{size}" for task in TASKS for size in (32, 128)]
TABLES: dict[str, Callable[[], str]] = {
    "throughput": lambda: throughput_table(*(load(f"throughput_{task}") for task in TASKS)),
    "single_forward": lambda: single_forward_table(load("single_forward")),
    "peers": lambda: peers_table(load("peers")),
    "update": lambda: update_table(load("update_cpu")),
    "forwards": lambda: forward_table(*map(load, SWEEPS)),
    "limits": lambda: limits_table(load(SWEEPS[0])),
    "noise": lambda: noise_table(*map(load, SWEEPS)),
    "memory": lambda: memory_table(load("policy_memory_cpu")),
    "env": lambda: env_table(*(load(path.stem) for path in sorted(RESULTS.glob("env_*.json")))),
    "physics": lambda: if_measured("physics", physics_table),
    "configs": lambda: if_measured("configs", configs_table),
    "startup": lambda: if_measured("startup", startup_table),
    "before_after": lambda: if_measured("before_after", before_after_table),
    "profile": lambda: profile_table(loop.PARTS, *map(load, PROFILES)),
}


def throughput_picture(path: Path, results: Results) -> None:
    """Draws the rates of the process pool over its workers, and of the others beside it."""
    settings, rows = results.settings, []
    for name, each in settings["contestants"].items():
        workers, rates = each["workers"], results.by_round(name, ENV_STEPS).values()
        rows += plots.of_values("workers", "process pool" if workers else name, workers, rates)
    title = f"{settings['env']}, {settings['population_size']} members, {settings['num_envs']} envs"
    plots.draw(path, rows, results.rows, ylabel=f"live {ENV_STEPS}", title=title, log=True)


def update_picture(path: Path, results: Results) -> None:
    """Draws the seconds of an update over the size of the network."""
    rows = []
    for network, facts in results.settings["networks"].items():
        panel, own = f"{facts['kind']}: size", results.where(network=network)
        for name in own.column("contestant"):
            values = own.by_round(name, update.UPDATE).values()
            rows += plots.of_values(panel, name, facts["size"], values)
        for name, seconds in (facts["paper"] or {}).items():
            rows += plots.of_values(panel, f"paper: {name}", facts["size"], [seconds])
    samples = f"an update of {results.settings['samples']:,} samples"
    plots.draw(path, rows, results.rows, ylabel=f"seconds per update, {samples}", log=True)


def policy_picture(path: Path, results: Results) -> None:
    """Draws the time of a forward over each size that was varied."""
    facts, seconds = results.settings["policies"], f"{policy.FORWARD}, s"
    sizes = {
        label: {"members": point.rows[0]["population_size"], **facts[point.rows[0]["policy"]]}
        for label, point in points(results).items()
    }
    base, rows = next(iter(sizes.values())), []
    for axis in ("members", "width", "depth"):
        fixed = {"members", "width", "depth"} - {axis}
        for label, point in points(results).items():
            if all(sizes[label][name] == base[name] for name in fixed):
                for name in (policy.UNPERTURBED, *policy.FAMILIES, policy.DENSE):
                    times = [1e3 * value for value in point.by_round(name, seconds).values()]
                    rows += plots.of_values(axis, name, sizes[label][axis], times)
    rows.sort(key=lambda row: row["x"])
    title = f"one forward of a population, around {next(iter(sizes))}"
    plots.draw(path, rows, results.rows, ylabel="ms per forward", title=title, log=True)


PICTURES: dict[str, Callable[[Path, Results], None]] = {
    **{f"throughput_{task}": throughput_picture for task in TASKS},
    "update_cpu": update_picture,
    "policy_cpu": policy_picture,
}
"""Each shows the results of the same name."""


def with_tables(text: str, tables: Mapping[str, Callable[[], str]] = TABLES, kind: str = "table") -> str:
    """Returns the text of a page with every table of a kind made anew.

    Raises:
        KeyError: if it asks for a table that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        return f"<!-- {kind}: {match[1]} -->\n\n{tables[match[1]]()}\n\n<!-- end -->"

    return re.sub(rf"<!-- {kind}: (\w+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    PAGE.write_text(with_tables(PAGE.read_text()))
    for name, picture in PICTURES.items():
        picture(RESULTS / f"{name}.png", load(name))


if __name__ == "__main__":
    main()
