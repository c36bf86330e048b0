"""es_flipout itself: whole generations of training as es-train runs them, checkpoints and metrics included.

Beside it, the bare physics of the vectorized backend: `mujoco.batch` repeating the same steps and resets.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.peers.contestant import (
    HIDDEN,
    LEARNING_RATE,
    MAX_EPISODE_STEPS,
    SIGMA,
    Job,
    Measurement,
    main,
)
from es_flipout.bench.replay import PhysicsCalls
from es_flipout.checkpoint import RunDirectory
from es_flipout.config import (
    Config,
    EnvConfig,
    ESConfig,
    EvaluationConfig,
    OptimizerConfig,
    PolicyConfig,
)
from es_flipout.envs import MujocoVectorEnv
from es_flipout.metrics import JsonLines, TensorBoard
from es_flipout.trainer import Trainer

BEST = {"backend": "vectorized"}


def measure(job: Job) -> Measurement:
    """Measures es_flipout."""
    torch.set_num_threads(1)  # as es-train does
    settings = job.settings(BEST)
    size = job.population_size
    config = Config(
        env=EnvConfig(job.task, {"max_episode_steps": MAX_EPISODE_STEPS}, num_slots=size),
        policy=PolicyConfig(hidden_sizes=[HIDDEN, HIDDEN]),
        es=ESConfig(population_size=size, sigma=SIGMA),
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        evaluation=EvaluationConfig(interval=0),
        seed=job.seed,
        **settings,
    )
    with tempfile.TemporaryDirectory() as folder, closing(Trainer(config)) as trainer:
        run = RunDirectory(Path(folder))
        run.checkpoints.mkdir()
        with closing(JsonLines(run.metrics)) as lines, closing(TensorBoard(run.path)) as board:
            trainer.train(run, [lines, board], max_generations=1)
            steps, generations = trainer.env_steps, 0
            envs = [env for env in trainer.envs if isinstance(env, MujocoVectorEnv)]
            calls = [PhysicsCalls.record(env.engine) for env in envs]
            start = time.perf_counter()
            while (elapsed := time.perf_counter() - start) < job.seconds:
                trainer.train(run, [lines, board], max_generations=1)
                generations += 1
        env_steps = trainer.env_steps - steps
    physics_seconds = None
    if envs and settings["backend"] == "vectorized":
        physics_seconds = PhysicsCalls.side_by_side(calls).replay(envs[0].task.model, config.threads)
    return Measurement(env_steps, generations * size, elapsed, generations, settings, physics_seconds)


if __name__ == "__main__":
    main(measure, ["torch", "gymnasium", "mujoco", "numpy"])
