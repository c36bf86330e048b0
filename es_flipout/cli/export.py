"""Export a run's policy as one file for other code, and check the file by running it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from es_flipout.choices import EXPORT_SUFFIXES
from es_flipout.cli.completion import add_completion
from es_flipout.cli.option_types import COUNT, SEED
from es_flipout.cli.output_file import check_output_file
from es_flipout.cli.process import UsageParser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-export` and returns its exit status."""
    return run_command("es-export", _export, arguments)


def _parser() -> UsageParser:
    parser = UsageParser(prog="es-export", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("run", metavar="RUN", type=Path, help="run directory")
    formats = "onnx (ONNX Runtime, TensorRT, OpenVINO, ...) or torch (a program of torch.export)"
    option("--to", choices=list(EXPORT_SUFFIXES), required=True, help=formats)
    option("--out", type=Path, metavar="FILE", help="default: policy.onnx or policy.pt2 in the run directory")
    which = "best, last, or a checkpoint file (default: best if it exists, otherwise last)"
    option("--checkpoint", help=which)
    steps = "env steps of the check, in the official environment (default: %(default)s)"
    option("--steps", type=COUNT, metavar="N", default=1000, help=steps)
    option("--seed", type=SEED, default=0, help="reset seed of its first episode (default: %(default)s)")
    add_completion(parser)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parsed = _parser().parse_args(arguments)
    if parsed.out is None:
        parsed.out = parsed.run / f"policy{EXPORT_SUFFIXES[parsed.to]}"
    if parsed.run.is_dir():
        check_output_file("--out", parsed.out, [EXPORT_SUFFIXES[parsed.to]])
    return parsed


def _export(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    # torch and MuJoCo take seconds to import: --help and mistakes do not wait for them.
    from es_flipout.cli.exporting import export

    export(parsed.run, parsed.checkpoint, parsed.to, parsed.out, steps=parsed.steps, seed=parsed.seed)
    return 0
