"""Make one self-contained HTML page about runs: their curves, scores, updates, settings and films."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from es_flipout.cli.completion import add_completion
from es_flipout.cli.config_file import UsageError
from es_flipout.cli.output_file import check_output_file
from es_flipout.cli.process import UsageParser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-report` and returns its exit status."""
    return run_command("es-report", _report, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-report", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    runs = "run directories; runs that differ only in the seed form a group"
    option("runs", metavar="RUN", type=Path, nargs="+", help=runs)
    out = "the page, which is replaced if it exists (default: %(default)s)"
    option("--out", type=Path, metavar="FILE", default=Path("report.html"), help=out)
    count = (
        "episodes to play with the last and the best policy of each run, 0 for none (default: %(default)s)"
    )
    option("--episodes", type=int, metavar="N", default=20, help=count)
    option("--no-film", action="store_true", help="leave out the film of each group's best policy")
    length = "end a film after N frames, however long the episode is (default: %(default)s)"
    option("--film-frames", type=int, metavar="N", default=300, help=length)
    add_completion(parser)
    parsed = parser.parse_args(arguments)
    if parsed.episodes < 0:
        raise UsageError(f"--episodes must be >= 0, got {parsed.episodes}")
    if parsed.film_frames < 1:
        raise UsageError(f"--film-frames must be >= 1, got {parsed.film_frames}; --no-film leaves films out")
    check_output_file("--out", parsed.out)
    _check_repeats(parsed.runs)
    return parsed


def _check_repeats(runs: Sequence[Path]) -> None:
    places = [run.resolve() for run in runs]
    for place, run in zip(places, runs, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{run} is given more than once")


def _report(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    if importlib.util.find_spec("plotly") is None:
        raise UsageError("plotly is missing: pip install 'es-flipout[report]'")
    # torch, MuJoCo and plotly take seconds to import: --help and mistakes do not wait for them.
    from es_flipout.cli.reporting import write_report

    film_frames = 0 if parsed.no_film else parsed.film_frames
    write_report(parsed.runs, parsed.out, episodes=parsed.episodes, film_frames=film_frames)
    return 0
