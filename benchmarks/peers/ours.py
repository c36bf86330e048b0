"""es_flipout itself: whole generations of training as es-train runs them, checkpoints and metrics included.

Beside it, the bare physics of the vectorized backend: `mujoco.batch` repeating the steps and resets of a
generation.
"""

from __future__ import annotations

import time

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
from benchmarks.speed.training import record_physics, training
from es_flipout.run.config import (
    Config,
    EnvConfig,
    ESConfig,
    EvaluationConfig,
    OptimizerConfig,
    PolicyConfig,
)

BEST = {"backend": "vectorized"}


def measure(job: Job) -> Measurement:
    """Measures es_flipout."""
    torch.set_num_threads(1)  # as es-train does
    settings = job.settings(BEST)
    size = job.population_size
    config = Config(
        device="cpu",
        env=EnvConfig(job.task, {"max_episode_steps": MAX_EPISODE_STEPS}, num_envs=size),
        policy=PolicyConfig(hidden_sizes=[HIDDEN, HIDDEN]),
        es=ESConfig(population_size=size, sigma=SIGMA),
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        evaluation=EvaluationConfig(interval=0),
        seed=job.seed,
        **settings,
    )
    with training(config) as (trainer, train_one):
        train_one()
        steps, generations, start = trainer.env_steps, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < job.seconds:
            train_one()
            generations += 1
        env_steps = trainer.env_steps - steps
    physics_seconds = None
    if settings["backend"] == "vectorized":
        calls, model = record_physics(config)
        calls.replay(model, config.threads)  # warms up
        physics_seconds = calls.replay(model, config.threads) * env_steps / calls.env_steps
    return Measurement(env_steps, generations * size, elapsed, generations, settings, physics_seconds)


if __name__ == "__main__":
    main(measure, ["torch", "gymnasium", "mujoco", "numpy"])
