"""Score a run's policy in the official Gymnasium environment, and film it."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch

from es_flipout.cli.arguments import UsageError, load_config
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.rollout import OfficialEvaluator
from es_flipout.rollout.score import FrameSink
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy
from es_flipout.run.checkpoint import RunDirectory

VIDEO_SUFFIXES = (".mp4", ".gif")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-eval` and returns its exit status."""
    return run_command("es-eval", _evaluate, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-eval", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--episodes", type=int, default=20, help="number of episodes (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="reset seed of the first episode; episode i uses seed + i (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        default=None,
        help="best, last, or a checkpoint file (default: best if it exists, otherwise last)",
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="write a video of the first episode to FILE (.mp4 or .gif)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.episodes < 1:
        raise UsageError(f"--episodes must be >= 1, got {parsed.episodes}")
    if parsed.seed < 0:
        raise UsageError(f"--seed must be >= 0, got {parsed.seed}")
    if parsed.video is not None:
        if parsed.video.suffix not in VIDEO_SUFFIXES:
            raise UsageError(f"--video must end in {' or '.join(VIDEO_SUFFIXES)}, got {parsed.video}")
        if not parsed.video.absolute().parent.is_dir():
            raise UsageError(f"--video: folder {parsed.video.parent} does not exist")
        if parsed.video.is_dir() or not os.access(parsed.video.absolute().parent, os.W_OK):
            raise UsageError(f"--video: cannot write {parsed.video}")
    return parsed


def _evaluate(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    run = RunDirectory.open(parsed.run)
    path = _checkpoint_path(run, parsed.checkpoint)
    config = load_config(run.config)
    if parsed.video is not None and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        evaluator = OfficialEvaluator(config.env, parsed.episodes, render=parsed.video is not None)
        env = evaluator.env
        policy = make_policy(config.policy, env.observation_space, env.action_space)
    except (ValueError, TypeError, ImportError, gym.error.Error) as error:
        raise UsageError(f"{run.config}: {error}") from error
    with closing(evaluator):
        state = checkpoint.load(path)
        checkpoint.load_policy(policy, state, path)
        torch.set_num_threads(1)
        silence_mujoco()
        with _film(parsed.video, env.metadata.get("render_fps", 30)) as on_frame:
            result = evaluator.score(policy, seed=parsed.seed, on_frame=on_frame)
    count = f"{parsed.episodes} episode{'' if parsed.episodes == 1 else 's'}"
    print(f"{config.env.id}, {path} (generation {state.get('generation')}), {count}")
    print(
        f"return  mean {result.mean:.1f}  std {result.std:.1f}  "
        f"min {np.nanmin(result.returns):.1f}  max {np.nanmax(result.returns):.1f}"
    )
    if result.failed:
        print(f"failed  {result.failed} of {count} (left out of the statistics)")
    print(
        f"length  mean {statistics.fmean(result.lengths):.1f}  "
        f"min {min(result.lengths)}  max {max(result.lengths)}"
    )
    if parsed.video is not None:
        print(f"video   {parsed.video} (episode of seed {parsed.seed}, return {result.returns[0]:.1f})")
    return 0


def _checkpoint_path(run: RunDirectory, name: str | None) -> Path:
    if name is None:
        return run.best if run.best.exists() else run.last
    return {"best": run.best, "last": run.last}.get(name, Path(name))


@contextmanager
def _film(path: Path | None, fps: int) -> Iterator[FrameSink | None]:
    """Yields a function that appends a frame to the video at `path`; None without a path."""
    if path is None:
        yield None
        return
    options = {"fps": fps} if path.suffix == ".mp4" else {"duration": 1000 / fps, "loop": 0}
    with imageio.get_writer(path, **options) as writer:
        yield writer.append_data  # type: ignore[attr-defined]
