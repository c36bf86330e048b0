"""What ends a run, or keeps it from beginning, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RunError(ValueError):
    """A run directory, a checkpoint or a configuration cannot be used; the message says why, in one line.

    Attributes:
        exit_status: of the command that it ends.
    """

    exit_status = 2


class RunBrokenError(RunError):
    """A run that had begun cannot go on. What it has saved is whole: a resumed run continues from there."""

    exit_status = 1


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
