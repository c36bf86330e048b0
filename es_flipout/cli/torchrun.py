"""es-train under torchrun: how a process detects it, its GPU, and the run that it continues if restarted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from es_flipout.cli.arguments import (
    RESUME_OPTIONS,
    TrainArguments,
    UsageError,
    check_resumed_schedules,
    load_config,
)
from es_flipout.run.config import Config, flat_config
from es_flipout.run.stored_paths import with_absolute_paths

if TYPE_CHECKING:
    from es_flipout.rollout import Ranks

DECIDED = ("device", "env.engine", "env.engine_kwargs")
"""What a run stores as decided on its machine."""


def is_launched() -> bool:
    """Returns whether torchrun, or what does as it does, has started this process as a rank."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def is_restarted() -> bool:
    """Returns whether torchrun has started this process in place of one that died."""
    return _number("TORCHELASTIC_RESTART_COUNT") > 0


def _number(variable: str) -> int:
    return int(os.environ.get(variable) or 0)


def check_ranks(config: Config, ranks: Ranks, *, resumes: bool) -> None:
    """Checks that ranks can do a run as configured.

    Raises:
        UsageError: if they cannot.
    """
    if _number("TORCHELASTIC_MAX_RESTARTS") > 0 and config.out is None and not resumes:
        raise UsageError("torchrun --max-restarts needs es-train --out DIR: restarted ranks continue there")
    if ranks.size > 1 and config.device.startswith("cuda:"):
        raise UsageError(
            f"device must be cuda on several ranks, each of which has its own; got {config.device}"
        )


def use_own_gpu(config: Config, ranks: Ranks) -> None:
    """Makes the GPU of this rank's LOCAL_RANK the one that `device: cuda` means, if a GPU may be used.

    Raises:
        UsageError: if there is no such GPU.
    """
    import torch  # here: es-train --help does not wait for it

    if not (ranks.is_launched and config.device in ("auto", "cuda") and torch.cuda.is_available()):
        return
    index, count = _number("LOCAL_RANK"), torch.cuda.device_count()
    if index >= count:
        raise UsageError(f"each rank needs a GPU of its own: this machine has {count} for {ranks.local_size}")
    torch.cuda.set_device(index)


def continued(request: TrainArguments) -> TrainArguments:
    """Returns what to do if the run that is asked for may have begun at its `out`.

    Raises:
        UsageError: if there is no `out`, or another run is there.
    """
    config = with_absolute_paths(request.config)
    if config.out is None:
        raise UsageError("--resume auto needs --out DIR, where the run is to be found")
    run = Path(config.out).expanduser()
    path = run / "config.yaml"
    if not path.is_file():
        return request
    stored = load_config(path)
    wanted = flat_config(config)
    for name, value in flat_config(stored).items():
        free = name.partition(".")[0] in (*RESUME_OPTIONS, "out") or name in DECIDED
        if not free and wanted[name] != value:
            raise UsageError(
                f"the run at {config.out} has {name} {value!r}, not {wanted[name]!r}: choose another --out"
            )
    changed = {name: getattr(config, name) for name in RESUME_OPTIONS if name != "device"}
    resumed = replace(stored, **changed)
    check_resumed_schedules(resumed, stored)
    keeps_device = config.device == "auto"
    if not keeps_device:
        resumed = resumed.on_device(config.device)
    return TrainArguments(resumed, run, keeps_device)
