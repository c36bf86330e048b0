"""What an exception says, in one line."""

from __future__ import annotations

import pytest

from es_flipout.error_text import error_text


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("too far"), "ValueError: too far"),
        (KeyError("robot.yaml"), "KeyError: 'robot.yaml'"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError("  "), "RuntimeError"),
        (FileNotFoundError(2, "No such file", "a.xml"), "FileNotFoundError: [Errno 2] No such file: 'a.xml'"),
        (RuntimeError("first\n  second\tthird\n"), "RuntimeError: first second third"),
        (MuteError(), "MuteError"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_an_exception_in_one_line(error, text):
    assert error_text(error) == text
