"""Whole generations of training, as es-train runs them, to be timed; and the physics of one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import mujoco

from benchmarks.speed.replay import PhysicsCalls
from es_flipout.envs import MujocoVectorEnv
from es_flipout.rollout import HostPlayer
from es_flipout.run.config import Config
from es_flipout.run.reporters.contract import RunInfo
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.reporters.tensorboard import TensorBoard
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer


@contextmanager
def training(config: Config) -> Iterator[tuple[Trainer, Callable[..., None]]]:
    """Gives a trainer, with a run directory that is deleted in the end, and what trains generations."""
    with tempfile.TemporaryDirectory() as folder, closing(Trainer(config)) as trainer:
        run = RunDirectory(Path(folder))
        run.checkpoints.mkdir()
        with (
            closing(JsonLines(run.metrics)) as lines,
            closing(TensorBoard(RunInfo(run.path, config))) as board,
        ):
            yield trainer, lambda count=1: trainer.train(run, [lines, board], max_generations=count)


def record_physics(
    config: Config, start: RunDirectory | None = None, generations: int = 1
) -> tuple[PhysicsCalls, mujoco.MjModel]:
    """Notes what generations of a native task ask of the physics, run in this process alone.

    Args:
        config: of the run.
        start: run whose last checkpoint they follow; None for a new run after its first generation.
        generations: how many.

    Returns:
        The calls, those of all envs in one batch, and the model.

    Raises:
        ValueError: if the task is not native.
    """
    with training(replace(config, threads=1)) as (trainer, train):
        player = trainer.player
        env = player.envs[0] if isinstance(player, HostPlayer) else None
        if not isinstance(env, MujocoVectorEnv):
            raise ValueError(f"{config.env.id} is not a native task: it has no raw physics to compare with")
        if start is None:
            train()
        else:
            trainer.restore(start)
        calls = PhysicsCalls.record(env.engine)
        train(generations)
        if not calls.steps:
            raise ValueError(f"{config.env.id}: no call of the physics engine was seen")
        return calls, env.task.model
