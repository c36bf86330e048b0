"""Make one self-contained HTML page about runs: their curves, scores, updates, settings and films."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from es_flipout.cli.arguments import UsageError, load_config
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.run.errors import writing
from es_flipout.run.run_directory import RunDirectory, atomic_write

DEFAULT_OUT = Path("report.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-report` and returns its exit status."""
    return run_command("es-report", _report, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-report", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directories; runs that differ only in the seed are a group",
    )
    out = "the page, which is overwritten if it exists (default: %(default)s)"
    option("--out", type=Path, metavar="FILE", default=DEFAULT_OUT, help=out)
    count = (
        "episodes to play with the last and the best policy of each run; 0 for none (default: %(default)s)"
    )
    option("--episodes", type=int, metavar="N", default=20, help=count)
    option("--no-film", action="store_true", help="leave out the film of each group's best policy")
    length = "frames of a film at most (default: %(default)s)"
    option("--film-frames", type=int, metavar="N", default=300, help=length)
    parsed = parser.parse_args(arguments)
    if parsed.episodes < 0:
        raise UsageError(f"--episodes must be >= 0, got {parsed.episodes}")
    if parsed.film_frames < 1:
        raise UsageError(f"--film-frames must be >= 1, got {parsed.film_frames}; --no-film leaves films out")
    _check_out(parsed.out)
    return parsed


def _check_out(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out: folder {path.parent} does not exist")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out: cannot write {path}")


def _report(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    if importlib.util.find_spec("plotly") is None:
        raise UsageError("es-report needs plotly: pip install 'es-flipout[report]'")
    directories = [RunDirectory.open(path) for path in parsed.runs]
    from es_flipout.cli.report_playing import SEED, play_and_film
    from es_flipout.report.groups import group_runs
    from es_flipout.report.page import render
    from es_flipout.report.runs import Run

    names = _names(directories)
    runs = [
        Run.read(directory, name, load_config(directory.config))
        for directory, name in zip(directories, names, strict=True)
    ]
    groups = group_runs(runs)
    played, films = play_and_film(groups, parsed.episodes, 0 if parsed.no_film else parsed.film_frames)
    content = render(groups, played, films, SEED).encode()
    with writing(parsed.out), atomic_write(parsed.out) as file:
        file.write(content)
    print(f"{parsed.out}: {len(runs)} run{'s'[: len(runs) > 1]}, {len(content) / 1e6:.1f} MB")
    return 0


def _names(directories: Sequence[RunDirectory]) -> list[str]:
    """Returns a name for each run: of its folder if no other one is called so, otherwise its path.

    Raises:
        UsageError: if a run is given more than once.
    """
    places = [directory.path.resolve() for directory in directories]
    for place, directory in zip(places, directories, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{directory.path} is given more than once")
    names = [place.name for place in places]
    return [
        name if names.count(name) == 1 else str(directory.path)
        for name, directory in zip(names, directories, strict=True)
    ]
