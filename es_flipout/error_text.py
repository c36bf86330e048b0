"""What an exception says, in one line: for messages about whatever a user's code raises."""

from __future__ import annotations


def error_text(error: BaseException) -> str:
    """Returns `Type: text` on one line; the type alone if the exception has no text."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own __str__ may be broken
        text = ""
    return f"{name}: {text}" if text else name
