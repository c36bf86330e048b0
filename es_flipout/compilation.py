"""Functions compiled by numba: how, and where their machine code stays from run to run.

Between two steps of physics a small torch or NumPy call costs several times what it costs in a tight loop.
What numba compiles makes one call of many, and needs no compiler on the user's machine. Compiling takes
seconds, so that it is done once: numba keeps machine code beside the source, or in its own cache if that
folder cannot be written to (NUMBA_CACHE_DIR chooses another).
"""

from __future__ import annotations

import hashlib
import importlib.util
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
    made: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    result: Function = made
    return result


def source_module(source: str) -> ModuleType:
    """Imports a module from its text, which is kept in a file so that numba can cache what it compiles.

    Args:
        source: Python; equal texts share a file, and thus the machine code.
    """
    name = f"es_flipout_generated_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    path = _folder() / f"{name}.py"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(source)
        Path(file.name).replace(path)  # another process may be doing the same
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where numba looks for it when it loads what it has compiled
    spec.loader.exec_module(module)
    return module


def _folder() -> Path:
    """Returns the folder of generated sources: in the user's cache, or a new one that is not kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "es_flipout"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="es_flipout"))
