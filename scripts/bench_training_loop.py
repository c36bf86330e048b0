"""Live env steps/s of the whole training loop over the same engine stepping alone.

    python scripts/bench_training_loop.py --env Humanoid-v5 --population-size 1024

Alone, the engine steps the same number of slots under uniform random actions, and only the calls of
`engine.step` are timed: what the loop adds (policy, observations, rewards, resets, statistics, update,
metrics, checkpoints) is all overhead. They alternate in one process; the result is the median of the
ratios.

Two more figures tell where the rest goes. The states of a policy can be slower to simulate than those that
random actions lead to: so the engine alone is also timed under the actions of an untrained population. And
the share of the loop's own time that is spent in `engine.step` says what everything else costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe_machine

from es_flipout.checkpoint import RunDirectory
from es_flipout.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig
from es_flipout.envs import MujocoVectorEnv, make_vec
from es_flipout.metrics import JsonLines, TensorBoard
from es_flipout.policies import make_policy
from es_flipout.strategy import FlipoutES
from es_flipout.trainer import Trainer


@dataclass
class TimedEngine:
    """Adds up the seconds that an environment's engine spends stepping, and the rows it steps."""

    env: MujocoVectorEnv
    seconds: float = 0.0
    rows: int = 0

    def __post_init__(self) -> None:
        step = self.env.engine.step

        def timed_step(ctrl, num_substeps, ids=None) -> None:
            start = time.perf_counter()
            step(ctrl, num_substeps, ids)
            self.seconds += time.perf_counter() - start
            self.rows += self.env.num_envs if ids is None else len(ids)

        self.env.engine.step = timed_step


def engine_alone(config: Config, seconds: float, with_policy: bool) -> float:
    """Returns the env steps/s of `engine.step` under random actions or an untrained population's.

    Ended episodes start again, untimed.
    """
    env = make_vec(config.env.id, config.env.num_slots, threads=config.threads, **config.env.kwargs)
    timed = TimedEngine(env)
    policy = make_policy(config.policy, env.single_observation_space, env.single_action_space)
    es = FlipoutES(policy, population_size=config.es.population_size, sigma=config.es.sigma)
    rows = es.ask().select(torch.arange(env.num_envs) % es.population_size)
    env.action_space.seed(0)
    observations, _ = env.reset(seed=0)
    while timed.seconds < seconds:
        actions = rows(observations) if with_policy else torch.from_numpy(env.action_space.sample())
        observations, _, terminated, truncated, _ = env.step(actions)
        if (ended := terminated | truncated).any():
            observations, _ = env.reset(options={"reset_mask": ended})
    env.close()
    return timed.rows / timed.seconds


def training_loop(config: Config, seconds: float) -> tuple[float, float]:
    """Returns the loop's live env steps/s over whole generations, and its share of time in the engine."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        run.checkpoints.mkdir()
        trainer = Trainer(config)
        timed = TimedEngine(trainer.env)
        reporters = [JsonLines(run.metrics), TensorBoard(run.path)]
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            # One whole generation at a time.
            generation = trainer.es.generation
            trainer.train(run, reporters, lambda done=generation: trainer.es.generation > done)
        elapsed = time.perf_counter() - start
        for reporter in reporters:
            reporter.close()
        trainer.close()
    return trainer.env_steps / elapsed, timed.seconds / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Humanoid-v5")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--population-size", type=int, default=1024)
    parser.add_argument("--hidden-sizes", type=int, nargs="*", default=[64, 64])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as es-train does
    config = Config(
        env=EnvConfig(arguments.env, num_slots=arguments.slots),
        policy=PolicyConfig(hidden_sizes=arguments.hidden_sizes),
        es=ESConfig(population_size=arguments.population_size),
        evaluation=EvaluationConfig(interval=0),
        threads=arguments.threads,
    )
    rounds = []
    for index in range(arguments.rounds):
        alone = engine_alone(config, arguments.seconds, with_policy=False)
        under_policy = engine_alone(config, arguments.seconds, with_policy=True)
        loop, engine_share = training_loop(config, arguments.seconds)
        rounds.append(
            {
                "engine_alone": alone,
                "engine_under_policy": under_policy,
                "training_loop": loop,
                "ratio": loop / alone,
                "engine_share": engine_share,
            }
        )
        print(
            f"round {index + 1}: engine alone {alone:,.0f} (under a policy {under_policy:,.0f}), "
            f"training loop {loop:,.0f} env steps/s, ratio {loop / alone:.3f} "
            f"({loop / under_policy:.3f}), engine's share of the loop {engine_share:.3f}",
            flush=True,
        )
    result = {
        "command": " ".join(sys.argv),
        "env": arguments.env,
        "slots": arguments.slots,
        "population_size": arguments.population_size,
        "hidden_sizes": arguments.hidden_sizes,
        "seed": config.seed,
        "median_ratio": statistics.median(entry["ratio"] for entry in rounds),
        "median_ratio_under_policy": statistics.median(
            entry["training_loop"] / entry["engine_under_policy"] for entry in rounds
        ),
        "median_engine_share": statistics.median(entry["engine_share"] for entry in rounds),
        "rounds": rounds,
        "machine": describe_machine(),
    }
    print(
        f"median ratio {result['median_ratio']:.3f} (to the engine under a policy "
        f"{result['median_ratio_under_policy']:.3f}), engine's share {result['median_engine_share']:.3f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
