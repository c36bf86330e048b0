"""The border to a user's code: modules that cannot be found, and whatever they raise, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from es_flipout.cli.config_file import UsageError
from es_flipout.dotted_path import is_dotted
from es_flipout.envs.wrappers import wrapper_name
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.run.config import Config
from es_flipout.run.reporters.names import reporter_name


def check_modules(config: Config) -> None:
    """Checks that every module of the user's can be found.

    Raises:
        UsageError: for the first that cannot, with what to do.
    """
    paths = [("env.id", config.env.id, ":")]
    paths += [("env.wrappers", wrapper_name(each), ":") for each in config.env.wrappers]
    paths += [("logging.reporters", reporter_name(each), ":") for each in config.logging.reporters]
    for option, path in (("policy.kind", config.policy.kind), ("optimizer.name", config.optimizer.name)):
        paths += [(option, path, ":" if ":" in path else ".")] if is_dotted(path) else []
    for option, path, separator in paths:
        module = path.rpartition(separator)[0]
        if module and not _is_found(module):
            raise UsageError(
                f"{option} {path}: No module named {module!r}; run the command from the folder that contains "
                f"it (this is {Path.cwd()}), or name that folder in PYTHONPATH"
            )


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Turns whatever a user's code raises in the block into one line. A `ValueError` is a line already.

    Args:
        where: it is raised, for the message.

    Raises:
        UsageError: in its place.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except FOREIGN as error:
        raise UsageError(f"{where}: {error_text(error)}") from error


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:
        return not f"{module}.".startswith(f"{error.name}.")  # otherwise it lacks a module itself
    except Exception:  # whatever a user's package may raise: told by what imports it
        return True
