"""Exports a run's policy as one file, and checks the file by running it."""

from __future__ import annotations

from pathlib import Path

import torch

from es_flipout.choices import ExportFormat
from es_flipout.cli.modules import check_modules, told
from es_flipout.cli.process import silence_mujoco
from es_flipout.export.check import DIFFERING_SHARE, TOLERANCE, Check, check
from es_flipout.export.formats import open_exported, write
from es_flipout.export.metadata import metadata
from es_flipout.export.module import ExportedModule, Input
from es_flipout.run.errors import RunBrokenError, writing
from es_flipout.run.loaded_policy import LoadedPolicy
from es_flipout.run.run_directory import RunDirectory


def export(
    folder: Path, checkpoint: str | None, format: ExportFormat, out: Path, *, steps: int, seed: int
) -> None:
    """Exports a policy, checks it, and prints what came of it.

    Args:
        folder: the run directory.
        checkpoint: see `RunDirectory.find_checkpoint`.
        format: of the file.
        out: the file, which is there only if it has passed the check.
        steps: env steps of the check.
        seed: reset seed of its first episode.

    Raises:
        RunError: if the policy cannot be exported.
        RunBrokenError: if it then acts otherwise.
        UsageError: if the run's environment or policy cannot be made or fails.
    """
    torch.set_num_threads(1)
    silence_mujoco()
    run = RunDirectory.open(folder)
    config = run.read_config()
    check_modules(config)
    with told(config.env.id):
        policy = LoadedPolicy(config, run.find_checkpoint(checkpoint))
    module = ExportedModule(policy)
    print(f"{policy.env_id}, {policy.checkpoint} (generation {policy.generation})")
    unfinished = out.with_name(f".unfinished-{out.name}")
    try:
        write(module, metadata(policy, module), format, unfinished)
        exported = open_exported(format, unfinished)
        with told(config.env.id):
            result = check(policy, module, exported, steps, seed)
        summary = _summary(result)
        if not result.is_passed:
            raise RunBrokenError(f"the exported policy does not act as the policy does: {summary}")
        with writing(out):
            unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1000:,.0f} kB, {_signature(module)}")
    print(summary)


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
