"""Score a run's policy in the official Gymnasium environment, and film it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from es_flipout.choices import FILM_SUFFIXES, MOST_FILM_FRAMES
from es_flipout.cli.completion import add_completion
from es_flipout.cli.config_file import UsageError
from es_flipout.cli.output_file import check_output_file
from es_flipout.cli.process import UsageParser, run_command
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
    length = f"end the video after N frames if the episode goes on (default: {MOST_FILM_FRAMES})"
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
        check_output_file("--video", parsed.video, FILM_SUFFIXES)
    return parsed


def _evaluate(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    run = RunDirectory.open(parsed.run)
    # torch and MuJoCo take seconds to import: --help and mistakes do not wait for them.
    from es_flipout.cli.evaluating import evaluate

    return evaluate(parsed, run)
