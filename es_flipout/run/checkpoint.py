"""Run directories and checkpoints: written whole or not at all, and read without running any code.

RUN/config.yaml            the resolved configuration
RUN/metrics.jsonl          one line per generation
RUN/events.out.tfevents.*  TensorBoard
RUN/checkpoints/last.pt    where a resumed run continues
RUN/checkpoints/best.pt    the highest center score so far
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from es_flipout.run import yaml_text
from es_flipout.run.config import Config
from es_flipout.run.migration import FORMAT, OLD_FORMAT, migrate_checkpoint, migrate_metrics
from es_flipout.run.stored_paths import with_absolute_paths


class RunError(ValueError):
    """A run directory, a checkpoint or a configuration cannot be used; the message says why, in one line.

    Attributes:
        exit_status: of the command that it ends.
    """

    exit_status = 2


class RunBrokenError(RunError):
    """A run that had begun cannot go on. What it has saved is whole: a resumed run continues from there."""

    exit_status = 1


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
        """Metrics of each generation: one JSON object per line."""
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
        """Creates the directory of a new run and writes its configuration.

        Raises:
            RunError: if the directory is not empty, or cannot be written.
        """
        try:
            run = cls(Path(config.out).expanduser() if config.out else _make_unnamed(config))
            run._refuse_if_taken()
            run.path.mkdir(parents=True, exist_ok=True)
            with run.locked():
                run._refuse_if_taken()  # another process may have been faster
                try:
                    run.checkpoints.mkdir()
                    run._write_config(config)
                except OSError:
                    run._remove_what_create_made()
                    raise
        except OSError as error:
            place = config.out or "runs"
            raise RunError(f"cannot write to the run directory {place}: {error.strerror}") from error
        return run

    def _remove_what_create_made(self) -> None:
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()
        with contextlib.suppress(OSError):
            (self.path / ".lock").unlink()
            self.path.rmdir()

    def _refuse_if_taken(self) -> None:
        if not self.path.is_dir() or not any(entry.name != ".lock" for entry in self.path.iterdir()):
            return
        advice = (
            f"continue it with --resume {shlex.quote(str(self.path))} or " if self.config.exists() else ""
        )
        raise RunError(f"{self.path} is not empty; {advice}choose another --out")

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Returns the existing run at `path`.

        Raises:
            RunError: if it is not a run directory.
        """
        run = cls(Path(path))
        if not run.config.is_file():
            raise RunError(f"{path} is not a run directory: it has no config.yaml")
        return run

    def write_config(self, config: Config) -> None:
        """Writes the resolved configuration.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        with writing(self.config):
            self._write_config(config)

    def _write_config(self, config: Config) -> None:
        with atomic_write(self.config) as file:
            file.write(yaml_text.dump(asdict(with_absolute_paths(config))).encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for this process; the lock ends with the process, even if that is killed.

        Raises:
            RunError: if another process holds the lock, or the directory cannot be written.
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
            except OSError as error:  # some network file systems have no locks
                raise RunError(f"cannot lock the run directory {self.path}: {error.strerror}") from error
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the metrics of every generation, the fields of `GenerationMetrics` by name.

        Raises:
            RunError: if a line is damaged. A last line without its end is left out: it was being written when
                the process died.
        """
        if not self.metrics.exists():
            return []
        found = []
        for number, line in enumerate(self.metrics.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                figures = migrate_metrics(json.loads(line))
                int(figures["generation"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise RunError(f"{self.metrics} is damaged in line {number}") from error
            found.append(figures)
        return found

    def truncate_metrics(self, generation: int) -> None:
        """Drops the metrics of generations after `generation`: a resumed run writes them again.

        Raises:
            RunError: if a line is damaged.
            RunBrokenError: if the file cannot be written.
        """
        if not self.metrics.exists():
            return
        kept = [line for line in self.read_metrics() if line["generation"] <= generation]
        with writing(self.metrics), atomic_write(self.metrics) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def safe_name(text: str) -> str:
    """Returns a file name that every system, shell and tool takes: only letters, digits, - _ and dots."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".-")


def _make_unnamed(config: Config) -> Path:
    """Creates a directory under a free name, safely if several processes do so at the same time."""
    name = safe_name(f"{config.env.id}-seed{config.seed}")
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns an `OSError` of the block (a full disk, a folder that is gone) into a `RunBrokenError`.

    Args:
        what: is being written, for the message.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more, which is no fault of the run
        raise
    except OSError as error:
        raise RunBrokenError(f"cannot write {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file that replaces `path` once the block ends without an exception."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


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
