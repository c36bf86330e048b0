"""What faults do to a run: trains through each kind of them, and without, and prints both logs.

    python -m scripts.inject_faults
    es-train --env.id scripts.faulty_envs:ExplodingPendulum-v0 --generations 20

Simulations that blow up (MuJoCo's warnings of huge values, and NaN), a reward that is NaN, an environment
that raises, a process that is killed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from es_flipout import Config, Trainer
from es_flipout.cli.process import silence_mujoco
from es_flipout.run.build import official_scorer
from es_flipout.run.config import EnvConfig, ESConfig, EvaluationConfig, OptimizerConfig, PolicyConfig
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.terminal import Terminal

RUNS = [
    ("InvertedPendulum-v5", "InvertedPendulum-v5", "auto"),
    ("scripts.faulty_envs:ExplodingPendulum-v0", "InvertedPendulum-v5", "auto"),
    ("CartPole-v1", "CartPole-v1", "gymnasium_processes"),
    ("scripts.faulty_envs:RaisingCartPole-v0", "CartPole-v1", "gymnasium_processes"),
    ("scripts.faulty_envs:DyingCartPole-v0", "CartPole-v1", "gymnasium_processes"),
]
"""What members train in, what the result is judged in, and the engine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_mujoco()
    console = Console(highlight=False, soft_wrap=True)
    for trained_in, judged_in, engine in RUNS:
        console.print(f"\n{trained_in}, judged in {judged_in}")
        config = Config(
            env=EnvConfig(trained_in, num_envs=32, engine=engine),
            policy=PolicyConfig(hidden_sizes=[16]),
            es=ESConfig(population_size=64, sigma=0.1),
            optimizer=OptimizerConfig(lr=0.05),
            evaluation=EvaluationConfig(interval=0),
            generations=arguments.generations,
        )
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(Path(folder))
            run.checkpoints.mkdir()
            trainer = Trainer(config)
            terminal = Terminal(console, progress=0.0)
            trainer.train(run, [terminal])
            terminal.close()
            trainer.close()
        scorer = official_scorer(EnvConfig(judged_in), 20)
        console.print(f"score of the center: {scorer.score(trainer.policy, seed=0).mean_return:,.0f}")
        scorer.close()


if __name__ == "__main__":
    main()
