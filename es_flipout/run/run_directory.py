"""The directory of a run: its files, each written whole or not at all, and its lock.

RUN/config.yaml            the resolved configuration
RUN/metrics.jsonl          one line per generation
RUN/starts.jsonl           one line per start of es-train: when, and on which machine
RUN/events.out.tfevents.*  TensorBoard
RUN/mlflow.json            which run of MLflow's it is, if it reports there; RUN/wandb.json: of W&B's
RUN/checkpoints/last.pt    where a resumed run continues
RUN/checkpoints/best.pt    the highest center score so far
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from es_flipout.run import yaml_text
from es_flipout.run.config import Config
from es_flipout.run.errors import RunError, writing
from es_flipout.run.migration import migrate_metrics
from es_flipout.run.stored_config import read_stored_config
from es_flipout.run.stored_paths import with_absolute_paths


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
    def starts(self) -> Path:
        """When and where each process of the run started: one JSON object per line."""
        return self.path / "starts.jsonl"

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
                    run.checkpoints.mkdir(exist_ok=True)
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
        if not self.path.is_dir() or all(map(self._is_of_beginning, self.path.iterdir())):
            return
        advice = (
            f"continue it with --resume {shlex.quote(str(self.path))} or " if self.config.exists() else ""
        )
        raise RunError(f"{self.path} is not empty; {advice}choose another --out")

    def _is_of_beginning(self, entry: Path) -> bool:
        """Returns whether a process that died while it created the directory may have left this."""
        is_empty = entry == self.checkpoints and not any(entry.iterdir())
        return is_empty or entry.name in (".lock", f"{self.config.name}.tmp")

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

    def find_checkpoint(self, name: str | None) -> Path:
        """Returns the checkpoint that a name means.

        Args:
            name: best, last, or a file; None for the best if there is one, otherwise the last.
        """
        if name is None:
            return self.best if self.best.exists() else self.last
        return {"best": self.best, "last": self.last}.get(name, Path(name))

    def read_config(self) -> Config:
        """Reads the resolved configuration, of this version or of an earlier one.

        Raises:
            RunError: if it cannot be read, or is not a configuration.
        """
        return read_stored_config(self.config)

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

    def read_starts(self) -> list[dict[str, Any]]:
        """Returns what `add_start` has added, oldest first; nothing for a run of a version without that.

        What cannot be read is left out: nothing depends on it.
        """
        found = []
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in self.starts.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    start = json.loads(line)
                    found += [start] if isinstance(start, dict) else []
        return found

    def add_start(self, start: Mapping[str, object]) -> None:
        """Adds when and where a process of the run started; see `describe_start`.

        Raises:
            RunBrokenError: if it cannot be written.
        """
        with writing(self.starts), atomic_write(self.starts) as file:
            file.write("".join(json.dumps(each) + "\n" for each in [*self.read_starts(), start]).encode())


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
