"""What a user gets: es-train on shipped configurations, against a plain loop of mj_step on every core.

es-train runs as a command in a process of its own, exactly as configured, and is stopped after a while. Its
rate is the live env steps between two lines of metrics.jsonl over the time between their being written:
training, scores, reports and checkpoints. Start-up is left out, with everything up to the first score, and
both lines are of generations without a score. A line is written while the next generation is played, unless
it has to wait for a score. The env steps of scores are counted separately: they are physics, too, but no
training.

The plain loop is one process per core, all at the same time, with one simulation each: reset, set the state,
mj_forward, then set the controls and mj_step for each env step. It repeats the episodes of the generation
that follows the first stop of es-train, with the actions of its members: under random actions a hopper falls
at once and has other contacts.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import mujoco

from benchmarks.speed.es_train import Checkout, last_metrics, metrics_between
from benchmarks.speed.replay import Episode
from benchmarks.speed.timing import turns
from benchmarks.speed.training import record_physics
from es_flipout.cli.arguments import load_config
from es_flipout.cli.results import Results
from es_flipout.cli.shipped import find_config
from es_flipout.cli.throughput import ENV_STEPS
from es_flipout.processes import Worker, end_workers
from es_flipout.run.config import EvaluationConfig
from es_flipout.run.run_directory import RunDirectory

ES_TRAIN, UNSCORED, BARE = "es-train", "es-train without scores", "mj_step on every core"
SHIPPED = ["hopper.yaml", "walker2d.yaml", "ant.yaml", "halfcheetah.yaml", "humanoid.yaml"]
ALL_STEPS = "env steps/s, those of scores included"
DEFAULTS = {"rounds": 5, "seconds": 10.0}
SECONDS_BETWEEN_LOOKS = 0.02


class Mark(NamedTuple):
    """How far a run had come when a line of its metrics was written."""

    generation: int
    env_steps: int
    time: float


def train_rates(
    words: list[str], first_generation: int, seconds: float, episodes: int, folder: Path
) -> dict[str, float]:
    """Returns the rates of an es-train that begins a run in `folder`/run, by metric.

    Args:
        words: its arguments.
        first_generation: the first whose line may begin the time that counts.
        seconds: how long that lasts, about.
        episodes: of a score.
        folder: an empty one.

    Raises:
        ValueError: if it ends before.
    """
    checkout, metrics = Checkout(), RunDirectory(folder / "run").metrics
    with checkout.started("train", [*words, "--out", str(folder / "run")], folder) as process:

        def mark(first_generation: int) -> Mark:
            while True:
                written = metrics.stat().st_mtime if metrics.exists() else 0.0
                last = last_metrics(metrics)
                if last and last["generation"] >= first_generation and last["score"] is None:
                    if metrics.stat().st_mtime == written:
                        return Mark(last["generation"], last["env_steps"], written)
                elif process.poll() is not None:
                    checkout.checked(process.returncode, "train", folder)
                    raise ValueError("es-train was done before it could be measured: measure fewer --seconds")
                time.sleep(SECONDS_BETWEEN_LOOKS)

        first = mark(first_generation)
        time.sleep(seconds)
        last = mark(first.generation + 1)
    lines = metrics_between(metrics, first.generation + 1, last.generation)
    of_scores = episodes * sum(line["score_episode_length"] or 0 for line in lines)
    trained, elapsed = last.env_steps - first.env_steps, last.time - first.time
    return {ENV_STEPS: trained / elapsed, ALL_STEPS: (trained + of_scores) / elapsed}


@dataclass(frozen=True)
class Recorded:
    """Episodes, and what they were played in."""

    model: mujoco.MjModel
    num_substeps: int
    episodes: list[Episode]

    @classmethod
    def after(cls, run: RunDirectory) -> Recorded:
        """Returns the episodes of the generation that follows in a run."""
        config = replace(load_config(run.config), evaluation=EvaluationConfig(interval=0))
        calls, model = record_physics(config, run)
        return cls(model, calls.num_substeps, calls.episodes())

    def bare_rate(self, processes: int, seconds: float) -> float:
        """Returns the env steps per second of plain loops, one per process, that share the episodes."""
        workers = [
            Worker(
                _step, self.model, self.num_substeps, self.episodes[i::processes] or self.episodes, seconds
            )
            for i in range(processes)
        ]
        try:
            for worker in workers:
                worker.receive()  # it is ready
            for worker in workers:
                worker.send(None)
            return float(sum(worker.receive() for worker in workers))
        finally:
            end_workers(workers)


def _step(
    connection: Connection, model: mujoco.MjModel, num_substeps: int, episodes: list[Episode], seconds: float
) -> None:
    """Repeats episodes for so many seconds when told to, and sends the env steps per second."""
    data = mujoco.MjData(model)
    connection.send(None)
    connection.recv()
    steps, start = 0, time.perf_counter()
    for episode in itertools.cycle(episodes):
        steps += episode.play(model, data, num_substeps)
        if (elapsed := time.perf_counter() - start) >= seconds:
            connection.send(steps / elapsed)
            return


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--configs", nargs="+", default=SHIPPED, metavar="NAME", help="native tasks")
    option("--arguments", type=shlex.split, default=[], help="further arguments of es-train, in quotes")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures configuration after configuration, each in alternating rounds.

    Raises:
        ValueError: if a configuration does not exist, its task is not native, or it has no score.
    """
    for name in options.configs:
        path = find_config(name).resolve()
        scores = load_config(path, options.arguments).evaluation
        if not scores.interval:
            raise ValueError(f"{name} has evaluation.interval 0: there are no scores to measure")
        words = [f"--config={path}", f"--seed={options.seed}", f"--threads={options.threads}"]
        words += options.arguments
        recorded: Recorded | None = None
        for index, contestant in turns([ES_TRAIN, BARE, UNSCORED], options.rounds):
            if contestant == BARE:
                assert recorded is not None  # es-train comes first
                rates = {ENV_STEPS: recorded.bare_rate(options.threads, options.seconds)}
            else:
                own = [*words, "--evaluation.interval=0"] if contestant == UNSCORED else words
                with tempfile.TemporaryDirectory() as folder:
                    rates = train_rates(
                        own, scores.interval + 1, options.seconds, scores.episodes, Path(folder)
                    )
                    recorded = recorded or Recorded.after(RunDirectory(Path(folder) / "run"))
            results.add(index, contestant, rates, config=name)
