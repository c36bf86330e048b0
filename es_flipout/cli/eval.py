"""es-eval: score a run's policy in the official Gymnasium environment, and film it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch
from typing_extensions import override

from es_flipout.cli.arguments import UsageError, load_config
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.rollout import Scorer
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_maker
from es_flipout.run.checkpoint import RunDirectory

VIDEO_SUFFIXES = (".mp4", ".gif")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-eval` and returns its exit status."""
    return run_command("es-eval", _evaluate, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-eval", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to score (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="reset seed of the first; the others follow it (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        default=None,
        help="best, last, or a checkpoint file (default: best if the run has one, else last)",
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="film the first episode into FILE, .mp4 or .gif"
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
            raise UsageError(f"--video: the folder {parsed.video.parent} does not exist")
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
        make = official_maker(config.env)
        film = None if parsed.video is None else Film(make(render_mode="rgb_array"))
        scorer = Scorer(make, parsed.episodes, first=film)
        policy = make_policy(config.policy, scorer.observation_space, scorer.action_space)
    except (ValueError, TypeError, ImportError, gym.error.Error) as error:
        raise UsageError(f"{run.config}: {error}") from error
    with closing(scorer):
        state = checkpoint.load(path)
        checkpoint.load_policy(policy, state, path)
        torch.set_num_threads(1)
        silence_mujoco()
        with film.into(parsed.video) if film is not None else nullcontext():
            episodes = scorer.score(policy, seed=parsed.seed)
    print(f"{config.env.id}, {path} (generation {state.get('generation')}), {parsed.episodes} episodes")
    returns, lengths = episodes.returns, episodes.lengths
    print(
        f"return  mean {episodes.mean_return:.1f}  std {episodes.std_return:.1f}  "
        f"min {np.nanmin(returns):.1f}  max {np.nanmax(returns):.1f}"
    )
    if episodes.faults:
        print(f"failed  {len(episodes.faults)} of {parsed.episodes} episodes; the figures are of the others")
    print(f"length  mean {lengths.mean():.1f}  min {lengths.min()}  max {lengths.max()}")
    if parsed.video is not None:
        print(f"video   {parsed.video} (episode of seed {parsed.seed}, return {returns[0]:.1f})")
    return 0


def _checkpoint_path(run: RunDirectory, name: str | None) -> Path:
    if name is None:
        return run.best if run.best.exists() else run.last
    return {"best": run.best, "last": run.last}.get(name, Path(name))


class Film(gym.Wrapper[Any, Any, Any, Any]):
    """Films an environment that renders RGB arrays: a frame before every action."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Takes the environment."""
        super().__init__(env)
        self._take: Callable[[Any], None] = lambda frame: None

    @contextmanager
    def into(self, path: Path) -> Iterator[None]:
        """Films into a file, .mp4 or .gif, until the block ends."""
        fps = self.metadata.get("render_fps", 30)
        options = {"fps": fps} if path.suffix == ".mp4" else {"duration": 1000 / fps, "loop": 0}
        with imageio.get_writer(path, **options) as writer:
            self._take = writer.append_data  # type: ignore[attr-defined]
            yield

    @override
    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self._take(np.asarray(self.render(), dtype=np.uint8))
        return result

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if not (terminated or truncated):
            self._take(np.asarray(self.render(), dtype=np.uint8))
        return observation, reward, terminated, truncated, info
