"""What share of bare physics' speed a training loop reaches, by task, policy and number of members.

After some training, the same generations are run again and again from the same state: by the loop (policy,
observations, statistics, resets, update, metrics, checkpoints; no scores), and by `mujoco.batch` alone, which
repeats exactly their resets and steps, all envs in one batch, without observations, rewards or contact forces
on bodies. Only live env steps are repeated, so that envs which wait for the end of a generation cost the loop
and not the physics. The process pool starts from the same state; its arithmetic is another, so its episodes
are not exactly the same.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.speed.timing import turns
from benchmarks.speed.training import record_physics, training
from es_flipout.cli.option_types import COUNT
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer

LOOP, POOL, PHYSICS = "training loop", "process pool", "bare physics"
STEPS, LENGTH, PROCESSES = "env steps", "env steps per episode", "processes"
"""Metrics beside ENV_STEPS; the last two have a row in the first round only."""
POLICIES = {
    "linear": PolicyConfig(kind="linear", action_bounds="clip"),
    "mlp": PolicyConfig(hidden_sizes=[64, 64]),
}
MEMBERS = {"HalfCheetah-v5": [4, 16, 64, 256], "Humanoid-v5": [16, 64, 512]}
"""Defaults; on two cores, four members with an env each are two envs per process."""
OTHER_MEMBERS = [16, 64, 256]
MOST_ENVS = {"Humanoid-v5": 128}
DEFAULTS = {"rounds": 5, "seconds": 2.0}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    tasks = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
    option("--tasks", nargs="+", default=tasks, metavar="ID", help="native tasks")
    option("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    option("--members", type=COUNT, nargs="+", metavar="P", help="populations (default: several, by task)")
    option("--num-envs", type=COUNT, help="most envs (default: one per member; 128 for Humanoid-v5)")
    pool = "populations for which the process pool is measured as well"
    option("--pool-members", type=COUNT, nargs="*", metavar="P", default=[16], help=pool)
    trained = "env steps of training before the generations that are measured"
    option("--trained-for", type=COUNT, metavar="STEPS", default=100_000, help=trained)


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures case after case, each in alternating rounds.

    Raises:
        ValueError: if a task is not native.
    """
    torch.set_num_threads(1)  # as es-train has it
    for task, policy in itertools.product(options.tasks, options.policies):
        for members in options.members or MEMBERS.get(task, OTHER_MEMBERS):
            most = options.num_envs or MOST_ENVS.get(task, members)
            config = Config(
                env=EnvConfig(task, num_envs=min(members, most)),
                policy=POLICIES[policy],
                es=ESConfig(population_size=members),
                evaluation=EvaluationConfig(interval=0),
                seed=options.seed,
                device="cpu",
                threads=options.threads,
            )
            print(f"{task}, {policy}, {members} members, {config.env.num_envs} envs", file=sys.stderr)
            case = {"task": task, "policy": policy, "members": members, "envs": config.env.num_envs}
            _measure_case(config, options, results, case)


def _measure_case(
    config: Config, options: argparse.Namespace, results: Results, case: dict[str, str | int]
) -> None:
    with ExitStack() as stack:
        start = RunDirectory(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        start.checkpoints.mkdir()
        loops = {LOOP: stack.enter_context(training(config))}
        trainer, train = loops[LOOP]
        generations = _prepare(trainer, train, start, options)
        calls, model = record_physics(config, start, generations)
        if case["members"] in options.pool_members:
            loops[POOL] = stack.enter_context(training(replace(config, backend="process_pool")))
        results.add(0, PHYSICS, {LENGTH: calls.env_steps / calls.num_resets}, **case)
        for name, (trainer, _) in loops.items():
            results.add(0, name, {PROCESSES: getattr(trainer.player, "num_workers", 1)}, **case)
        for index, name in turns([PHYSICS, *loops], options.rounds):
            if name == PHYSICS:
                steps, seconds = calls.env_steps, calls.replay(model, config.threads)
            else:
                trainer, train = loops[name]
                trainer.restore(start)
                before, began = trainer.env_steps, time.perf_counter()
                train(generations)
                steps, seconds = trainer.env_steps - before, time.perf_counter() - began
            results.add(index, name, {ENV_STEPS: steps / seconds, STEPS: steps}, **case)


def _prepare(
    trainer: Trainer, train: Callable[..., None], start: RunDirectory, options: argparse.Namespace
) -> int:
    """Trains into `start`, and returns how many generations take about `options.seconds` from there."""
    while trainer.env_steps < options.trained_for:
        trainer.train(start, max_generations=1)
    began = time.perf_counter()
    train()
    seconds: float = options.seconds
    return math.ceil(seconds / (time.perf_counter() - began))
