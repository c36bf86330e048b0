"""Checkpoints: what a run continues from and es-eval plays, read without running any code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.run.errors import RunError, writing
from es_flipout.run.migration import FORMAT, OLD_FORMAT, migrate_checkpoint
from es_flipout.run.run_directory import RunDirectory, atomic_write


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint of tensors, numbers, strings and containers of them.

    Raises:
        RunBrokenError: if it cannot be written; a file that was there is as it was.
    """
    content = io.BytesIO()  # torch hides why a write to a file has failed
    torch.save({"format": FORMAT, **state}, content)
    with writing(path), atomic_write(path) as file:
        file.write(content.getbuffer())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of this format or of the one before; nothing in the file is executed.

    Raises:
        RunError: if the file is missing, damaged, of another format, or contains anything but plain data.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} does not exist")
    try:
        with path.open("rb") as file:
            is_whole = zipfile.is_zipfile(file)
    except OSError as error:
        raise RunError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if not is_whole:
        raise RunError(f"checkpoint {path} is damaged, truncated, or not a checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"checkpoint {path} was refused: it contains objects other than plain data") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"checkpoint {path} cannot be read: it is damaged") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found not in (OLD_FORMAT, FORMAT):
        raise RunError(
            f"checkpoint {path} has format {found}; this version reads formats {OLD_FORMAT} and {FORMAT}"
        )
    try:
        state = migrate_checkpoint(state)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"checkpoint {path} cannot be read: it is damaged") from error
    policy = state.get("policy")
    if not isinstance(policy, dict) or not all(isinstance(value, Tensor) for value in policy.values()):
        raise RunError(f"checkpoint {path} contains no policy")
    return state


def load_policy(policy: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads a checkpoint's policy into `policy`.

    Raises:
        RunError: if names or shapes differ; the message gives the first that does.
    """
    check_policy(policy, state, path)
    policy.load_state_dict(state["policy"])


def begin_with(policy: nn.Module, path: Path) -> None:
    """Loads the policy of a run's last checkpoint, or of a checkpoint file, into `policy` on its device.

    Raises:
        RunError: if there is none, or its names or shapes differ.
    """
    if path.is_dir():
        path = RunDirectory.open(path).last
    load_policy(policy, load(path), path)


def check_policy(policy: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Checks that a checkpoint's policy has the names and shapes of `policy`.

    Raises:
        RunError: if it does not; the message gives the first that differs.
    """
    saved, expected = state["policy"], policy.state_dict()
    for name in [*expected, *saved]:
        found = tuple(saved[name].shape) if name in saved else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "not part of it"
        if found != wanted:
            raise RunError(
                f"checkpoint {path} was saved with a different policy: {name} is {found}, "
                f"but {wanted} in the configured policy"
            )
