"""Trains several configurations with several seeds each, and scores the results.

python -m scripts.train_suite scripts/suites/published.yaml --only hopper swimmer --seeds 0 1 2 --jobs 2

A suite is a YAML file with, for each name, the arguments of es-train and a published score if there is one.
Every run is a run directory OUT/NAME/seedSEED. A suite that was stopped, by Ctrl-C or a crash, continues
where it was when it is started again. A run's score is the mean return of its last center over episodes in
the official environment, from reset seeds that training never saw. A run that has not used up its budget is
scored as well, and listed with its env steps so far.

The results, including learning curves, go to RESULTS/train_NAME.json. `scripts.suite_report` makes the tables
and plots of docs/results.md from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from es_flipout.cli.arguments import load_config, parse_train
from es_flipout.cli.process import silence_mujoco
from es_flipout.processes import available_cores
from es_flipout.run import checkpoint, yaml_text
from es_flipout.run.build import make_policy, official_scorer
from es_flipout.run.config import Config
from es_flipout.run.machine import describe_machine
from es_flipout.run.placement import place
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.stored_paths import with_absolute_paths
from scripts.suite_report import plot, table

SCORE_SEED = 3_000_000
"""Reset seed of the first episode of a score; neither training nor the scores during it use any of them."""
NOT_THE_RUN = ("out", "threads", "logging")
"""Settings that may differ when a run is resumed: no result depends on them."""


@dataclass(frozen=True)
class Entry:
    """A configuration of a suite.

    Attributes:
        name: its name.
        arguments: arguments of es-train.
        published: published scores; empty if there are none.
    """

    name: str
    arguments: Sequence[str]
    published: str


def read_suite(path: Path) -> list[Entry]:
    """Returns the configurations of a suite."""
    suite = yaml_text.load(path.read_text())
    return [
        Entry(name, shlex.split(entry["arguments"]), entry.get("published", ""))
        for name, entry in suite.items()
    ]


def train_arguments(entry: Entry, seed: int, out: Path, threads: int) -> list[str]:
    """Returns the arguments of es-train that begin or resume a run.

    Raises:
        ValueError: if the run in `out` has a different configuration.
    """
    speed = [f"--threads={threads}"]
    begin = [*entry.arguments, f"--seed={seed}", f"--out={out}", *speed]
    if not (out / "config.yaml").exists():
        return begin
    stored = load_config(out / "config.yaml")
    wanted = with_absolute_paths(place(parse_train(begin).config, lambda line: None))
    if (differ := _first_difference(asdict(stored), asdict(wanted))) is not None:
        raise ValueError(f"{out} was begun with another {differ}; remove it, or choose another --out")
    return [f"--resume={out}", *speed]


def _first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    return next((key for key in wanted if key not in NOT_THE_RUN and stored.get(key) != wanted[key]), None)


def train(arguments: Sequence[str], out: Path) -> None:
    """Runs es-train in its own process until the budget is used up or it is stopped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = "import sys; from es_flipout.cli.train import main; sys.exit(main(sys.argv[1:]))"
    with out.with_suffix(".log").open("a") as log:
        ended = subprocess.run([sys.executable, "-c", command, *arguments], stdout=log, stderr=log)
    said = out.with_suffix(".log").read_text().splitlines()
    why = f", {said[-1]}" if ended.returncode and said else ""
    print(f"{out}: exit status {ended.returncode}{why}", flush=True)


def run_all(
    entries: Sequence[Entry], seeds: Sequence[int], runs: Mapping[tuple[str, int], Path], jobs: int
) -> None:
    """Trains all runs that have budget left, seed by seed over all configurations."""
    threads = max(available_cores() // jobs, 1)
    outs = {runs[entry.name, seed]: (entry, seed) for seed in seeds for entry in entries}
    arguments = {out: train_arguments(*which, out, threads) for out, which in outs.items()}
    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(train, words, out) for out, words in arguments.items()]
        try:
            for future in begun:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # es-train saves when it is stopped
            raise


def score(run: RunDirectory, config: Config, episodes: int) -> dict[str, Any]:
    """Returns the returns of a run's last center and how far it was trained; also kept in RUN/score.json."""
    state = checkpoint.load(run.last)
    kept = run.path / "score.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["generation"] == state["generation"] and len(found["returns"]) == episodes:
            return found
    with closing(official_scorer(config.env, episodes)) as scorer:
        policy = make_policy(config.policy, scorer.observation_space, scorer.action_space)
        checkpoint.load_policy(policy, state, run.last)
        played = scorer.score(policy, seed=SCORE_SEED)
    found = {
        "generation": state["generation"],
        "env_steps": state["env_steps"],
        "seconds": state["seconds"],
        "finished": config.progress(state["generation"], state["env_steps"]) >= 1,
        "score": played.mean_return,
        "score_std": played.std_return,
        "failed": len(played.faults),
        "returns": played.returns.tolist(),
    }
    kept.write_text(json.dumps(found))
    return found


def curve(run: RunDirectory) -> dict[str, list[float]]:
    """Returns the learning curve of a run: every score that training measured."""
    scored = [line for line in run.read_metrics() if line["score"] is not None]
    return {
        "env_steps": [line["env_steps"] for line in scored],
        "seconds": [round(line["timing"]["seconds"], 1) for line in scored],
        "score": [round(line["score"], 2) for line in scored],
    }


def summary(
    suite: str, entry: Entry, runs: Mapping[int, RunDirectory], episodes: int, command: str
) -> dict[str, Any]:
    """Returns the results of all seeds of a configuration."""
    configs = {seed: load_config(run.config) for seed, run in runs.items()}
    settings = asdict(next(iter(configs.values())))
    body = {
        "suite": suite,
        "name": entry.name,
        "arguments": shlex.join(entry.arguments),
        "published": entry.published,
        "config": {key: value for key, value in settings.items() if key not in ("seed", "out")},
        "episodes": episodes,
        "score_seed": SCORE_SEED,
        "runs": [
            {"seed": seed, **score(run, configs[seed], episodes), "curve": curve(run)}
            for seed, run in runs.items()
        ],
    }
    return {"command": command, **body, "machine": describe_machine()}


def export(run: RunDirectory, path: Path) -> None:
    """Copies the parts of a run that es-eval needs: its configuration and its last policy."""
    config, state = load_config(run.config), checkpoint.load(run.last)
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    small = RunDirectory(path)
    small.write_config(dataclasses.replace(config, out=None, threads=None))
    checkpoint.save(small.last, {key: state[key] for key in ("generation", "env_steps", "seconds", "policy")})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path, help="a YAML file, see scripts/suites/")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these configurations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs in parallel, sharing the cores")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per score (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/suite/NAME of the suite)")
    parser.add_argument("--results", type=Path, help="folder for train_NAME.json")
    parser.add_argument("--plot", type=Path, help="file for the learning curves")
    parser.add_argument("--pretrained", type=Path, help="folder for the last policy of the first seed")
    parser.add_argument("--report", action="store_true", help="do not train, only score existing runs")
    arguments = parser.parse_args(words)
    entries = read_suite(arguments.suite)
    if arguments.only:
        if unknown := set(arguments.only) - {entry.name for entry in entries}:
            parser.error(f"{arguments.suite} has no {', '.join(sorted(unknown))}")
        entries = [entry for entry in entries if entry.name in arguments.only]
    out = arguments.out or Path("runs") / "suite" / arguments.suite.stem
    runs = {(e.name, seed): out / e.name / f"seed{seed}" for e in entries for seed in arguments.seeds}
    if not arguments.report:
        try:
            run_all(entries, arguments.seeds, runs, arguments.jobs)
        except ValueError as error:
            parser.error(str(error))
    torch.set_num_threads(1)
    silence_mujoco()
    command = shlex.join(["python", "-m", "scripts.train_suite", *(words or sys.argv[1:])])
    documents = []
    for entry in entries:
        opened = {seed: RunDirectory(runs[entry.name, seed]) for seed in arguments.seeds}
        opened = {seed: run for seed, run in opened.items() if run.last.exists()}
        if not opened:
            continue
        documents.append(summary(arguments.suite.stem, entry, opened, arguments.episodes, command))
        if arguments.pretrained:
            export(next(iter(opened.values())), arguments.pretrained / entry.name)
    print(table(documents))
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for each in documents:
            (arguments.results / f"train_{each['name']}.json").write_text(json.dumps(each, indent=1) + "\n")
    if arguments.plot:
        plot(documents, arguments.plot)


if __name__ == "__main__":
    main()
