"""Export a run's policy as one file for other code, and check the file by running it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from es_flipout.cli.config_file import UsageError
from es_flipout.cli.modules import check_modules, told
from es_flipout.cli.option_types import COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.export.check import DIFFERING_SHARE, TOLERANCE, Check, check
from es_flipout.export.formats import FORMATS, SUFFIXES, open_exported, write
from es_flipout.export.metadata import metadata
from es_flipout.export.module import ExportedModule, Input
from es_flipout.run.errors import RunBrokenError, writing
from es_flipout.run.loaded_policy import LoadedPolicy
from es_flipout.run.run_directory import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-export` and returns its exit status."""
    return run_command("es-export", _export, arguments)


def _parser() -> UsageParser:
    parser = UsageParser(prog="es-export", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("run", metavar="RUN", type=Path, help="run directory")
    formats = "onnx (ONNX Runtime, TensorRT, OpenVINO, ...) or torch (a program of torch.export)"
    option("--to", choices=FORMATS, required=True, help=formats)
    option("--out", type=Path, metavar="FILE", help="default: policy.onnx or policy.pt2 in the run directory")
    which = "best, last, or a checkpoint file (default: best if it exists, otherwise last)"
    option("--checkpoint", help=which)
    steps = "env steps of the check, in the official environment (default: %(default)s)"
    option("--steps", type=COUNT, metavar="N", default=1000, help=steps)
    option("--seed", type=SEED, default=0, help="reset seed of its first episode (default: %(default)s)")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parsed = _parser().parse_args(arguments)
    if parsed.out is None:
        parsed.out = parsed.run / f"policy{SUFFIXES[parsed.to]}"
    folder = parsed.out.absolute().parent
    if parsed.out.suffix != SUFFIXES[parsed.to]:
        raise UsageError(f"--out must end in {SUFFIXES[parsed.to]} for --to {parsed.to}, got {parsed.out}")
    if not folder.is_dir() and parsed.run.is_dir():
        raise UsageError(f"--out: folder {parsed.out.parent} does not exist")
    if folder.is_dir() and (parsed.out.is_dir() or not os.access(folder, os.W_OK)):
        raise UsageError(f"--out: cannot write {parsed.out}")
    return parsed


def _export(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    torch.set_num_threads(1)
    silence_mujoco()
    run = RunDirectory.open(parsed.run)
    config = run.read_config()
    check_modules(config)
    with told(config.env.id):
        policy = LoadedPolicy(config, run.find_checkpoint(parsed.checkpoint))
    module = ExportedModule(policy)
    print(f"{policy.env_id}, {policy.checkpoint} (generation {policy.generation})")
    unfinished = parsed.out.with_name(f".unfinished-{parsed.out.name}")
    try:
        write(module, metadata(policy, module), parsed.to, unfinished)
        exported = open_exported(parsed.to, unfinished)
        with told(config.env.id):
            result = check(policy, module, exported, parsed.steps, parsed.seed)
        summary = _summary(result)
        if not result.is_passed:
            raise RunBrokenError(f"the exported policy does not act as the policy does: {summary}")
        with writing(parsed.out):
            unfinished.replace(parsed.out)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{parsed.out}: {parsed.out.stat().st_size / 1000:,.0f} kB, {_signature(module)}")
    print(summary)
    return 0


def _summary(result: Check) -> str:
    """Returns what a check has found, as a line."""
    steps = f"{result.steps:,} env steps"
    if result.largest is None:
        return f"checked over {steps}: {result.differing} actions differ (allowed: {DIFFERING_SHARE:.1%})"
    return (
        f"checked over {steps}: actions differ by {result.largest:.1e} at most "
        f"(allowed: {TOLERANCE:.0e} of half the action range)"
    )


def _signature(module: ExportedModule) -> str:
    """Returns inputs and outputs as text."""

    def of(each: Input) -> str:
        shape = ", ".join(["N", *map(str, each.shape)])
        return f"{each.name} {str(each.dtype).removeprefix('torch.')} [{shape}]"

    inputs = ", ".join(of(each) for each in (*module.observations, *module.states))
    return f"{inputs} -> {', '.join(module.output_names)}"
