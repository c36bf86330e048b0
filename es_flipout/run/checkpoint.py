"""Run directories and checkpoints: written whole or not at all, and read without running any code.

RUN/config.yaml            the resolved configuration
RUN/metrics.jsonl          one line a generation
RUN/events.out.tfevents.*  TensorBoard
RUN/checkpoints/last.pt    where a resumed run continues
RUN/checkpoints/best.pt    the highest center score so far
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from es_flipout.run.config import Config

FORMAT = 3
"""Version of the checkpoint's layout."""


class RunError(ValueError):
    """A run directory or a checkpoint cannot be used; the message says why, in one line."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line, one line a generation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run continues from."""
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the highest center score."""
        return self.checkpoints / "best.pt"

    def kept(self, generation: int) -> Path:
        """A checkpoint that later ones do not replace."""
        return self.checkpoints / f"generation_{generation:06d}.pt"

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """Makes the directory of a new run and writes its configuration.

        Raises:
            RunError: if `config.out` names a directory that holds something, or cannot be written.
        """
        try:
            run = cls(Path(config.out).expanduser() if config.out else _make_unnamed(config))
            run._refuse_if_taken()
            run.path.mkdir(parents=True, exist_ok=True)
            with run.locked():
                run._refuse_if_taken()  # by a process that was faster
                run.checkpoints.mkdir()
                run.write_config(config)
        except OSError as error:
            place = config.out or "runs"
            raise RunError(f"cannot write to the run directory {place}: {error.strerror}") from error
        return run

    def _refuse_if_taken(self) -> None:
        if not self.path.is_dir() or not any(entry.name != ".lock" for entry in self.path.iterdir()):
            return
        advice = f"continue it with --resume {self.path}, or " if self.config.exists() else ""
        raise RunError(f"{self.path} is not empty; {advice}choose another --out")

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Returns the existing run at `path`.

        Raises:
            RunError: if there is none.
        """
        run = cls(Path(path))
        if not run.config.is_file():
            raise RunError(f"{path} is not a run directory: it has no config.yaml")
        return run

    def write_config(self, config: Config) -> None:
        """Writes the resolved configuration."""
        text = yaml.safe_dump(asdict(config), sort_keys=False)
        with atomic_write(self.config) as file:
            file.write(text.encode())

    @contextlib.contextmanager
    def locked(self) -> Any:
        """Holds the run for this process; the lock goes with the process, however it ends.

        Raises:
            RunError: if another process holds it, or the directory cannot be written.
        """
        try:
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"cannot write to the run directory {self.path}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process is training in {self.path}") from error
            yield

    def truncate_metrics(self, generation: int) -> None:
        """Drops the metrics of generations after `generation`: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept: list[str] = []
        for line in self.metrics.read_text().splitlines(keepends=True):
            # Only the line being written when a process died can be torn, and it is past the checkpoint.
            if not line.endswith("\n"):
                break
            try:
                if json.loads(line)["generation"] > generation:
                    break
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(f"{self.metrics} is damaged in line {len(kept) + 1}") from error
            kept.append(line)
        with atomic_write(self.metrics) as file:
            file.write("".join(kept).encode())


def _make_unnamed(config: Config) -> Path:
    """Makes a directory whose name nobody else has taken, also not at the same time."""
    name = f"{config.env.id.replace('/', '_')}-seed{config.seed}"
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Any:
    """Opens a binary file that replaces `path` when the block ends, and only if it ends well."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint of tensors, numbers, strings and containers of them."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in the file is executed.

    Raises:
        RunError: if the file is missing, damaged, of another format, or holds anything but plain data.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} does not exist")
    if not zipfile.is_zipfile(path):
        raise RunError(f"checkpoint {path} is damaged, truncated, or not a checkpoint at all")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"checkpoint {path} is refused: it holds objects other than plain data") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"checkpoint {path} cannot be read: it is damaged") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"checkpoint {path} is not of format {FORMAT}")
    policy = state.get("policy")
    if not isinstance(policy, dict) or not all(isinstance(value, Tensor) for value in policy.values()):
        raise RunError(f"checkpoint {path} holds no policy")
    return state


def load_policy(policy: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads a checkpoint's policy into `policy`.

    Raises:
        RunError: if the shapes are not the policy's; the message names the first that differs.
    """
    check_policy(policy, state, path)
    policy.load_state_dict(state["policy"])


def begin_with(policy: nn.Module, path: Path) -> None:
    """Loads the policy of a run's last checkpoint, or of a checkpoint file, into `policy`, wherever that is.

    Raises:
        RunError: if there is none, or its shapes are not the policy's.
    """
    if path.is_dir():
        path = RunDirectory.open(path).last
    load_policy(policy, load(path), path)


def check_policy(policy: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Checks that a checkpoint's policy has the names and shapes of `policy`.

    Raises:
        RunError: if it has not; the message names the first that differs.
    """
    saved, expected = state["policy"], policy.state_dict()
    for name in [*expected, *saved]:
        found = tuple(saved[name].shape) if name in saved else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "not part of it"
        if found != wanted:
            raise RunError(
                f"checkpoint {path} is of another policy: {name} is {found}, "
                f"the configured policy's is {wanted}"
            )
