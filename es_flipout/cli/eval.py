"""Score a run's policy in the official Gymnasium environment, and film it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from es_flipout.cli.arguments import UsageError
from es_flipout.cli.completion import add_completion
from es_flipout.cli.playback import Playback, check_video, play_run
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.score_report import as_json, figure, report
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
    add_completion(parser)
    parsed = parser.parse_args(arguments)
    if parsed.episodes < 1:
        raise UsageError(f"--episodes must be >= 1, got {parsed.episodes}")
    if parsed.seed < 0:
        raise UsageError(f"--seed must be >= 0, got {parsed.seed}")
    if parsed.video_frames is not None and (parsed.video is None or parsed.video_frames < 1):
        raise UsageError(f"--video-frames must be >= 1, and needs --video; got {parsed.video_frames}")
    if parsed.video is not None:
        check_video(parsed.video, "--video")
    return parsed


def _evaluate(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    run = RunDirectory.open(parsed.run)
    with _stdout_on_stderr() if parsed.json else contextlib.nullcontext(), _display() as before_step:
        played = play_run(
            run,
            run.find_checkpoint(parsed.checkpoint),
            episodes=parsed.episodes,
            seed=parsed.seed,
            randomize=parsed.randomize,
            video=parsed.video,
            video_frames=parsed.video_frames,
            before_step=before_step,
        )
    if parsed.json:
        _print_json(parsed, played)
    else:
        _print_text(parsed, played)
    return 1 if len(played.episodes.faults) == parsed.episodes else 0


def _print_json(parsed: argparse.Namespace, played: Playback) -> None:
    about = {
        "env": played.config.env.id,
        "checkpoint": str(played.checkpoint),
        "generation": played.generation,
        "episodes": parsed.episodes,
        "seed": parsed.seed,
        "randomized": parsed.randomize,
    }
    print(json.dumps({**about, **as_json(played.episodes)}, allow_nan=False))


def _print_text(parsed: argparse.Namespace, played: Playback) -> None:
    episodes, film = played.episodes, played.film
    count = f"{parsed.episodes} episode{'' if parsed.episodes == 1 else 's'}"
    kind = " (randomized)" if parsed.randomize else ""
    print(f"{played.config.env.id}{kind}, {played.checkpoint} (generation {played.generation}), {count}")
    print("\n".join(report(episodes)))
    if film is not None:
        outcome = "failed" if 0 in episodes.faults else f"return {figure(episodes.returns[0])}"
        about_film = f"{film.num_frames} frames, episode of seed {parsed.seed}, {outcome}"
        print(f"video   {parsed.video if film.num_frames else 'none'} ({about_film})")


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
def _display() -> Iterator[Callable[[], None]]:
    """Shows on a terminal how far the episodes are; gives what is to be called before every step."""
    console, steps = Console(stderr=True), itertools.count()
    if not console.is_terminal:
        yield lambda: None
        return
    with console.status("") as status:
        yield lambda: status.update(f"step {next(steps):,}")
