"""A file that a command is to write, checked before the work: whether its name and its folder will do."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from es_flipout.cli.config_file import UsageError


def check_output_file(option: str, path: Path, suffixes: Collection[str] = ()) -> None:
    """Checks that a file can be written.

    Args:
        option: that names it, for the message.
        path: of the file.
        suffixes: how its name may end; anything if empty.

    Raises:
        UsageError: if it cannot.
    """
    folder = path.absolute().parent
    if suffixes and path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} must end in {' or '.join(suffixes)}, got {path}")
    if not folder.is_dir():
        raise UsageError(f"{option}: folder {path.parent} does not exist")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: cannot write {path}")
