"""What an exception says, in one line: for messages about a user's code."""

from __future__ import annotations

FOREIGN = (Exception, SystemExit)
"""What a user's code may raise, and a run survives."""


class OneLineError(Exception):
    """An error of this package whose message says all in one line: its type would add nothing."""


def error_text(error: BaseException) -> str:
    """Returns `Type: text` on one line.

    The type alone if the exception has no text, the text alone if it is a `OneLineError`.
    """
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own __str__ may be broken
        text = ""
    if not text:
        return name
    return text if isinstance(error, OneLineError) else f"{name}: {text}"
