"""What es-report does: reads the runs, plays and films their policies, and writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from es_flipout.cli.report_playing import SEED, play_and_film
from es_flipout.report.groups import group_runs
from es_flipout.report.page import render
from es_flipout.report.runs import Run
from es_flipout.run.errors import writing
from es_flipout.run.run_directory import RunDirectory, atomic_write


def write_report(paths: Sequence[Path], out: Path, *, episodes: int, film_frames: int) -> None:
    """Writes the page about some runs, and prints where it is.

    Args:
        paths: run directories, all different.
        out: file of the page.
        episodes: to be played with each policy; 0 for none.
        film_frames: where a film ends; 0 for no film.

    Raises:
        RunBrokenError: if the page cannot be written.
        RunError: if a directory is not that of a run, or cannot be read.
    """
    directories = [RunDirectory.open(path) for path in paths]
    runs = [
        Run.read(directory, name) for directory, name in zip(directories, _names(directories), strict=True)
    ]
    groups = group_runs(runs)
    played, films = play_and_film(groups, episodes, film_frames)
    content = render(groups, played, films, SEED).encode()
    with writing(out), atomic_write(out) as file:
        file.write(content)
    print(f"{out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(content) / 1e6:.1f} MB")


def _names(directories: Sequence[RunDirectory]) -> list[str]:
    """Returns a name for each run: that of its folder, or its path if another folder is called the same."""
    names = [directory.path.resolve().name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory.path)
        for name, directory in zip(names, directories, strict=True)
    ]
