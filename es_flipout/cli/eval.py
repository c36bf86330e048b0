"""Score a run's policy in the official Gymnasium environment, and film it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from es_flipout.cli.arguments import UsageError, load_config
from es_flipout.cli.film import SUFFIXES, Film, FilmError
from es_flipout.cli.modules import check_modules
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.cli.score_report import as_json, figure, report
from es_flipout.envs.native import can_randomize
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.rollout import Episodes, PlayError, PlayStoppedError, Scorer
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_maker, official_scorer
from es_flipout.run.config import Config
from es_flipout.run.run_directory import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-eval` and returns its exit status."""
    return run_command("es-eval", _evaluate, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-eval", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("run", metavar="RUN", help="run directory")
    option("--episodes", type=int, default=20, help="number of episodes (default: %(default)s)")
    seed = "reset seed of the first episode; episode i uses seed + i (default: %(default)s)"
    option("--seed", type=int, default=0, help=seed)
    which = "best, last, or a checkpoint file (default: best if it exists, otherwise last)"
    option("--checkpoint", help=which)
    option("--video", type=Path, metavar="FILE", help="film the first episode into FILE (.mp4 or .gif)")
    length = "end the video after N frames, however long the episode is (default: all of it)"
    option("--video-frames", type=int, metavar="N", help=length)
    option(
        "--randomize", action="store_true", help="play randomized episodes, if the task has a randomization"
    )
    option("--json", action="store_true", help="print the figures of every episode, as JSON")
    parsed = parser.parse_args(arguments)
    if parsed.episodes < 1:
        raise UsageError(f"--episodes must be >= 1, got {parsed.episodes}")
    if parsed.seed < 0:
        raise UsageError(f"--seed must be >= 0, got {parsed.seed}")
    if parsed.video_frames is not None and (parsed.video is None or parsed.video_frames < 1):
        raise UsageError(f"--video-frames must be >= 1, and needs --video; got {parsed.video_frames}")
    if parsed.video is not None:
        _check_video(parsed.video)
    return parsed


def _check_video(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--video must end in {' or '.join(SUFFIXES)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--video: folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"--video: cannot write {path}")


def _evaluate(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    run = RunDirectory.open(parsed.run)
    path = _checkpoint_path(run, parsed.checkpoint)
    config = load_config(run.config)
    check_modules(config)
    with _stdout_on_stderr() if parsed.json else contextlib.nullcontext():
        randomize = _randomizes(config, parsed.randomize)
        film = None if parsed.video is None else _make_film(config, parsed.video_frames, randomize)
        scorer = _make_scorer(config, parsed.episodes, film, randomize)
        with closing(scorer):
            policy = _make_policy(config, scorer)
            state = checkpoint.load(path)
            checkpoint.load_policy(policy, state, path)
            torch.set_num_threads(1)
            silence_mujoco()
            episodes = _score(config, scorer, policy, parsed.seed, film, parsed.video)
    generation = state.get("generation")
    if parsed.json:
        about = {"env": config.env.id, "checkpoint": str(path), "generation": generation}
        about |= {"episodes": parsed.episodes, "seed": parsed.seed, "randomized": randomize}
        print(json.dumps({**about, **as_json(episodes)}, allow_nan=False))
    else:
        count = f"{parsed.episodes} episode{'' if parsed.episodes == 1 else 's'}"
        kind = " (randomized)" if randomize else ""
        print(f"{config.env.id}{kind}, {path} (generation {generation}), {count}")
        print("\n".join(report(episodes)))
        if film is not None:
            outcome = "failed" if 0 in episodes.faults else f"return {figure(episodes.returns[0])}"
            about_film = f"{film.num_frames} frames, episode of seed {parsed.seed}, {outcome}"
            print(f"video   {parsed.video if film.num_frames else 'none'} ({about_film})")
    return 1 if len(episodes.faults) == len(episodes) else 0


def _checkpoint_path(run: RunDirectory, name: str | None) -> Path:
    if name is None:
        return run.best if run.best.exists() else run.last
    return {"best": run.best, "last": run.last}.get(name, Path(name))


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Has standard error take what a user's environment prints, by Python or C, so that JSON stands alone."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Turns whatever a user's code raises in the block into one line. A `ValueError` is a line already."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except FOREIGN as error:
        raise UsageError(f"{where}: {error_text(error)}") from error


def _randomizes(config: Config, wanted: bool) -> bool:
    with _told(config.env.id):
        if wanted and not can_randomize(config.env.id, **config.env.kwargs):
            raise UsageError(f"--randomize: {config.env.id} has no randomization")
    return wanted


def _make_film(config: Config, num_frames: int | None, randomize: bool) -> Film:
    mode = config.env.kwargs.get("render_mode", "rgb_array")  # which observations may depend on
    with _told(f"--video needs render_mode {mode}, with which {config.env.id} cannot be made"):
        env = official_maker(config.env, randomize=randomize)(render_mode=mode)
        return Film(env, max_frames=num_frames or math.inf)


def _make_scorer(config: Config, episodes: int, film: Film | None, randomize: bool) -> Scorer:
    info = config.evaluation.info
    with _told(config.env.id):
        return official_scorer(config.env, episodes, info=info, first=film, randomize=randomize)


def _make_policy(config: Config, scorer: Scorer) -> nn.Module:
    with _told(f"policy {config.policy.kind}"):
        return make_policy(config.policy, scorer.observation_space, scorer.action_space)


def _score(
    config: Config, scorer: Scorer, policy: nn.Module, seed: int, film: Film | None, video: Path | None
) -> Episodes:
    """Plays the episodes, and films the first.

    Raises:
        FilmError: if the film cannot be written.
        UsageError: if `render()` or the policy fails.
    """
    filming = contextlib.nullcontext() if film is None or video is None else film.into(video)
    try:
        with _display(config.env.id) as show, filming, contextlib.suppress(PlayStoppedError):

            def should_stop() -> bool:
                show()
                return film is not None and film.error is not None

            return scorer.score(policy, seed=seed, should_stop=should_stop)
    except FilmError as error:
        if error.exit_status == 2:
            raise UsageError(f"{config.env.id}: {error}") from error
        raise
    except PlayError as error:
        raise UsageError(str(error)) from error
    raise AssertionError("a film that stops the episodes raises at its end")


@contextlib.contextmanager
def _display(env_id: str) -> Iterator[Callable[[], None]]:
    """Shows on a terminal how far the episodes are; gives what is to be called before every step."""
    console, steps = Console(stderr=True), itertools.count()
    if not console.is_terminal:
        yield lambda: None
        return
    with console.status("") as status:
        yield lambda: status.update(f"{env_id}: step {next(steps):,}")
