"""Plays and films the policies of a report's runs. The page says what keeps one from being played."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.status import Status

from es_flipout.cli.config_file import UsageError
from es_flipout.cli.playback import Follow, play_run
from es_flipout.cli.process import OutputConsole
from es_flipout.report.groups import Group
from es_flipout.report.returns import Filmed, Played
from es_flipout.report.runs import Run
from es_flipout.run import checkpoint
from es_flipout.run.errors import RunError

SEED = 0
"""Reset seed of the first episode."""
NO_CHECKPOINT = "the run has no checkpoint yet"


def play_and_film(
    groups: Sequence[Group], episodes: int, film_frames: int
) -> tuple[list[Played], dict[int, Filmed]]:
    """Plays the last and the best policy of every run, and films the best policy of every group.

    Args:
        groups: all runs.
        episodes: for each policy; 0 for none.
        film_frames: where a film ends; 0 for no film.

    Returns:
        The episodes, and the films by the index of the group.
    """
    played: list[Played] = []
    films: dict[int, Filmed] = {}
    with OutputConsole(stderr=True).status("") as status:
        for group in groups:
            for run in group.runs:
                policies = _policies(run)
                for which, path in policies.items() if episodes else ():
                    follow = _counted(status, f"{run.name}: playing its {which} policy")
                    played.append(_play(run, which, path, episodes, follow))
                if episodes and not policies:
                    played.append(Played(run, "last", problem=NO_CHECKPOINT))
            if film_frames:
                run = group.best_run
                follow = _counted(status, f"{run.name}: filming")
                films[group.index] = _film(run, film_frames, follow)
    return played, films


def _counted(status: Status, task: str) -> Follow:
    """Returns what is told before every step, to show how far a task is."""
    return lambda episodes, steps, frames: status.update(f"{escape(task)}, step {steps:,}")


def _play(run: Run, which: str, path: Path, episodes: int, follow: Follow) -> Played:
    try:
        playback = play_run(run.directory, path, episodes=episodes, seed=SEED, follow=follow)
    except (UsageError, RunError) as error:
        return Played(run, which, problem=str(error))
    table = playback.episodes
    return Played(run, which, playback.generation, table.returns, table.failures)


def _film(run: Run, frames: int, follow: Follow) -> Filmed:
    """Films the best policy of a run, the last one if there is no best, in an episode of its own."""
    policies = _policies(run)
    if not policies:
        return Filmed(run, problem=NO_CHECKPOINT)
    which, path = list(policies.items())[-1]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "film.mp4")
        try:
            playback = play_run(
                run.directory,
                path,
                episodes=1,
                seed=SEED,
                video=video,
                video_frames=frames,
                follow=follow,
            )
        except (UsageError, RunError) as error:
            return Filmed(run, problem=str(error))
        if not video.exists():
            return Filmed(run, problem=f"the episode failed: {', '.join(playback.episodes.failures)}")
        content = base64.b64encode(video.read_bytes()).decode()
    assert playback.film is not None
    length, filmed = int(playback.episodes.lengths[0]), playback.film.num_frames
    cut = f"; the film ends after {filmed} frames" if filmed <= length else ""
    outcome = f"return {playback.episodes.returns[0]:,.5g} after {length:,} steps{cut}"
    return Filmed(run, f"{which} policy, reset seed {SEED}, {outcome}", content)


def _policies(run: Run) -> dict[str, Path]:
    """Returns the checkpoints of different policies of a run, the best one at the end."""
    last, best = run.directory.last, run.directory.best
    if not best.exists():
        return {"last": last} if last.exists() else {}
    if not last.exists():
        return {"best": best}
    try:
        generations = [checkpoint.load(path).get("generation") for path in (last, best)]
    except RunError:  # which says so when it is played
        generations = []
    is_same = len(set(generations)) == 1 and generations[0] is not None
    return {"last and best": best} if is_same else {"last": last, "best": best}
