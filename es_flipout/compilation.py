"""Functions compiled by numba: how, and where their machine code stays from run to run.

Between two steps of physics a small torch or NumPy call costs several times what it costs in a tight loop.
What numba compiles makes one call of many, and needs no compiler on the user's machine. Compiling takes
seconds, so that it is done once: numba keeps machine code beside the source, or in its own cache if that
folder cannot be written to (NUMBA_CACHE_DIR chooses another).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Decorates a function that numba compiles when it is first called with arguments of some types.

    Without fast math: every operation rounds as IEEE 754 says, in the order in which it is written.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        made: Any = numba.njit(cache=True, **options)(function)  # type: ignore[call-overload]
    except RuntimeError:  # there is no folder to cache it in
        made = numba.njit(**options)(function)  # type: ignore[call-overload]
    result: Function = made
    return result


def source_module(source: str) -> ModuleType:
    """Returns the module of a text, which is kept in a file so that numba can cache what it compiles.

    If the user's cache cannot be written to, it is compiled anew in every process.

    Args:
        source: Python; equal texts share a file, and thus the machine code.
    """
    name = f"es_flipout_generated_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "es_flipout" / f"{name}.py"
    with contextlib.suppress(OSError):
        if not path.exists():
            _write(path, source)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where numba looks for it when it loads what it has compiled
    exec(compile(source, path, "exec"), vars(module))
    return module


def _write(path: Path, text: str) -> None:
    """Writes a file as a whole: another process may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
