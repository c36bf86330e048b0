"""What went wrong in someone else's code, on one line."""

from __future__ import annotations


def error_text(error: BaseException) -> str:
    """Returns `Type: text` on one line; the type alone if the error has no text."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
