"""Plays what es-eval was asked for, shows how far the episodes are, and prints what came of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, Progress, TextColumn

from es_flipout.choices import MOST_FILM_FRAMES
from es_flipout.cli.playback import Follow, Playback, play_run
from es_flipout.cli.process import OutputConsole
from es_flipout.cli.score_report import as_json, figure, report
from es_flipout.rollout import Episodes
from es_flipout.run.onlooker import LOOKS_PER_SECOND
from es_flipout.run.run_directory import RunDirectory


def evaluate(parsed: argparse.Namespace, run: RunDirectory) -> int:
    """Plays the episodes that es-eval was asked for, and prints what came of them; returns the exit status.

    Args:
        parsed: the arguments, see `eval`.
        run: whose policy plays.
    """
    with _stdout_on_stderr() if parsed.json else contextlib.nullcontext(), _display(parsed) as follow:
        played = play_run(
            run,
            run.find_checkpoint(parsed.checkpoint),
            episodes=parsed.episodes,
            seed=parsed.seed,
            randomize=parsed.randomize,
            video=parsed.video,
            video_frames=parsed.video_frames or MOST_FILM_FRAMES,
            follow=follow,
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
def _display(parsed: argparse.Namespace) -> Iterator[Follow]:
    """Shows on a terminal how far the episodes and the film are; gives what is told before every step."""
    console = OutputConsole(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[right]}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        played = bars.add_task("episodes", total=parsed.episodes, right="")
        filmed = None
        next_look = 0.0

        def follow(episodes: Episodes, steps: int, frames: int) -> None:
            nonlocal filmed, next_look
            if bars.disable or time.monotonic() < next_look:
                return
            next_look = time.monotonic() + 1 / LOOKS_PER_SECOND
            running = episodes.unplayed
            env_steps = episodes.env_steps + running * steps
            right = f"{parsed.episodes - running} of {parsed.episodes}, {env_steps:,} env steps"
            bars.update(played, completed=parsed.episodes - running, right=right)
            if frames:
                total = parsed.video_frames
                filmed = bars.add_task("video", total=total, right="") if filmed is None else filmed
                bars.update(filmed, completed=frames, right=f"{frames:,} frames")

        yield follow
