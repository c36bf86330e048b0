"""Real runs on several ranks of this machine against the simulation: python -m benchmarks.scaling.runs.

`es-train` trains the sleeping environment under torchrun, so that ranks hardly compete for cores. The same
run is repeated with each number of ranks, in alternating rounds. A prediction takes the time of an env step
from the run on one rank in the same round, all other costs from `scaling_costs.json`, and the lengths of the
very episodes that were played.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.scaling.costs import MEASURED, RESULTS, Costs, Line
from benchmarks.scaling.generation import CLAIMED, STATIC, Setup, simulated
from benchmarks.scaling.launch import torchrun
from benchmarks.scaling.lengths import CONSTANT, Ints
from benchmarks.scaling.sleeping import lengths_of_seeds
from es_flipout.cli.arguments import load_config
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results
from es_flipout.run.config import Config
from es_flipout.run.machine import describe_machine
from es_flipout.run.play_generation import seeds_of

SECONDS, PREDICTED, PREDICTED_STATIC = "s per env step", "predicted", "predicted, static shares"
EFFICIENCY = "efficiency"
"""Metrics: time of the measured generations by their env steps, and the share of an ideal speedup."""
WARM_UP = 1
"""Generations that are not counted."""
OBSERVATIONS = 4
TRAIN_CODE = "import sys; from es_flipout.cli.train import main; sys.exit(main(sys.argv[1:]))"
"""What a rank executes."""


@dataclass(frozen=True)
class Workload:
    """The episodes of the runs: see `Sleeping`."""

    lengths: str
    scale: float
    step_seconds: float
    population_size: int
    block_size: int
    seed: int = 0

    def words(self) -> list[str]:
        """Returns the arguments of es-train that do not depend on the number of ranks."""
        kwargs = {"step_seconds": self.step_seconds, "lengths": self.lengths, "scale": self.scale}
        return [
            "--env.id=benchmarks.scaling.sleeping:Sleeping-v0",
            f"--env.kwargs={json.dumps({**kwargs, 'observation_size': OBSERVATIONS})}",
            "--env.num_envs=1",
            "--policy.kind=linear",
            f"--es.population_size={self.population_size}",
            f"--rollout.block_size={self.block_size}",
            "--evaluation.interval=0",
            "--logging.reporters=[jsonl]",
            f"--seed={self.seed}",
            "--device=cpu",
            "--threads=1",
        ]

    def lengths_of(self, generation: int) -> Ints:
        """Returns the lengths of the episodes of a generation, counted from 0."""
        seeds = seeds_of(_config(self), generation, block=0)
        return lengths_of_seeds(seeds.ravel(), self.lengths, self.scale)


@cache
def _config(workload: Workload) -> Config:
    return load_config(None, workload.words())


def main(words: Sequence[str] | None = None) -> int:
    """Does the runs and returns the exit status."""
    return run_command("benchmarks.scaling.runs", _measure, words)


def _measure(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(1)
    costs = Costs.read(options.costs).here()  # before it takes long
    results = Results.read(options.again) if options.again else _run(options, words)
    if options.json:
        results.write(options.json)
    predict(results, costs)
    print(table(results))
    if options.json:
        results.write(options.json)
    return 0


def _run(options: argparse.Namespace, words: Sequence[str]) -> Results:
    """Does the runs and returns their times."""
    workloads = {
        name: Workload(name, scale, options.step_seconds, options.members, options.block_size, options.seed)
        for name, scale in zip(options.lengths, options.scales, strict=True)
    }
    command = shlex.join(["python", "-m", "benchmarks.scaling.runs", *words])
    settings = {name: getattr(options, name) for name in ("rounds", "most_generations")}
    results = Results({"command": command, **settings})
    for index in range(options.rounds):
        for name, workload in workloads.items():
            for ranks in (1, *(each for each in options.ranks if each > 1)):
                print(f"round {index + 1} of {options.rounds}: {name}, {ranks} ranks", file=sys.stderr)
                measured = run_seconds(workload, ranks, min(ranks, options.most_generations))
                results.add(index, who(ranks), {SECONDS: measured}, lengths=name, ranks=ranks)
    described = {name: asdict(workload) for name, workload in workloads.items()}
    results.settings |= {"workloads": described, "machine": describe_machine()}
    return results


def who(ranks: int) -> str:
    """Returns the contestant."""
    return f"{ranks} ranks"


def predict(results: Results, costs: Costs) -> None:
    """Adds to measured times what the simulation says of them, instead of what it may have said before."""
    results.rows = [row for row in results.rows if row["metric"] == SECONDS]
    most_generations = results.settings["most_generations"]
    alone = {(row["lengths"], row["round"]): row["value"] for row in results.where(ranks=1).rows}
    workloads = {name: Workload(**each) for name, each in results.settings["workloads"].items()}
    for row in list(results.rows):
        name, index, ranks = row["lengths"], row["round"], row["ranks"]
        one, generations = alone[name, index], min(ranks, most_generations)
        figures = {
            metric: predicted(workloads[name], ranks, generations, costs, one, sharing)
            for metric, sharing in ((PREDICTED, CLAIMED), (PREDICTED_STATIC, STATIC))
        }
        figures[EFFICIENCY] = one / (ranks * row["value"])
        results.add(index, who(ranks), figures, lengths=name, ranks=ranks)


def _parser() -> argparse.ArgumentParser:
    parser = UsageParser(prog="benchmarks.scaling.runs", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--ranks", type=COUNT, nargs="+", default=[1, 2, 4, 8])
    option("--lengths", nargs="+", default=[CONSTANT, "untrained"], help="distributions of lengths")
    option("--scales", type=AMOUNT, nargs="+", default=[12, 0.4], help="factor on the lengths of each")
    option("--step-seconds", type=AMOUNT, default=0.02)
    option("--members", type=COUNT, default=64, help="one episode each")
    option("--block-size", type=COUNT, default=1)
    help_text = "most that are measured, after one to warm up; on fewer ranks, as many as there are ranks"
    option("--most-generations", type=COUNT, default=4, help=help_text)
    option("--rounds", type=COUNT, default=3)
    option("--seed", type=SEED, default=0)
    option("--costs", type=Path, default=MEASURED, metavar="FILE", help="what measure has written")
    option("--again", type=Path, metavar="FILE", help="predict anew what was measured for it")
    option(
        "--json", type=Path, metavar="FILE", help=f"file for the results ({RESULTS.name}/scaling_runs.json)"
    )
    return parser


def run_seconds(workload: Workload, ranks: int, generations: int) -> float:
    """Trains on several ranks, and returns the seconds of the measured generations per env step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [*workload.words(), f"--generations={WARM_UP + generations}", f"--out={out}"]
        try:
            torchrun(ranks, TRAIN_CODE, words, Path(folder))
        except ValueError as error:  # something else on the machine may have ended it
            print(f"once more: {error}", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
            torchrun(ranks, TRAIN_CODE, words, Path(folder))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    env_steps = [after["env_steps"] - before["env_steps"] for before, after in itertools.pairwise(lines)]
    speeds = [line["timing"]["env_steps_per_second"] for line in lines[1:]]
    return sum(steps / speed for steps, speed in zip(env_steps, speeds, strict=True)) / sum(env_steps)


def predicted(
    workload: Workload, ranks: int, generations: int, costs: Costs, alone: float, sharing: str
) -> float:
    """Returns the seconds of the measured generations per env step, as simulated.

    Args:
        workload: of the runs.
        ranks: how many.
        generations: measured ones.
        costs: of claims, exchange, merge and update.
        alone: seconds per env step of a run on one rank, its update included.
        sharing: see `Setup`.
    """
    tables = [workload.lengths_of(WARM_UP + index) for index in range(generations)]
    env_steps = sum(int(lengths.sum()) for lengths in tables)
    updating = generations * costs.update["linear"](workload.population_size)
    costs = replace(costs, step=Line(alone - updating / env_steps, (0.0,)))
    setup = Setup(
        ranks, max_envs=1, block_size=workload.block_size, observations=OBSERVATIONS, sharing=sharing
    )
    return sum(simulated(lengths, setup, costs).seconds for lengths in tables) / env_steps


def table(results: Results) -> str:
    """Returns the efficiency and the errors of the predictions as Markdown, medians over rounds."""
    lines = [
        "| lengths | ranks | ms per env step | efficiency | predicted | error | by round | static shares |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in results.column("lengths"):
        own = results.where(lengths=name)
        for ranks in own.column("ranks"):
            measured, expected = own.spread(who(ranks), SECONDS), own.spread(who(ranks), PREDICTED)
            errors = [each - 1 for each in own.ratios((who(ranks), PREDICTED), (who(ranks), SECONDS))]
            alone = own.by_round(who(1), SECONDS)
            ideal = {index: value / ranks for index, value in alone.items()}
            ours, static = (
                statistics.median(
                    ideal[index] / value for index, value in own.by_round(who(ranks), metric).items()
                )
                for metric in (PREDICTED, PREDICTED_STATIC)
            )
            cells = (
                f"{measured.median * 1e3:.2f}",
                f"{own.spread(who(ranks), EFFICIENCY).median:.3f}",
                f"{ours:.3f}",
                f"{expected.median / measured.median - 1:+.1%}",
                ", ".join(f"{each:+.1%}" for each in errors),
                f"{static:.3f}",
            )
            lines.append(f"| {name} | {ranks} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
