"""What an exception says, and what a value is, in one line."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch

from es_flipout.described import described
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


class Robot:
    def __repr__(self):
        raise RuntimeError("no text for this")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        (Decimal("0.5"), "Decimal('0.5')"),
        ("two\nlines", "'two\\nlines'"),
        ("x" * 99, f"'{'x' * 39}... (str)"),
        (np.zeros((2, 1), np.float32), "a NumPy array of shape (2, 1) and dtype float32"),
        (torch.zeros(3, dtype=torch.int64), "a tensor of shape (3,) and dtype int64"),
        ((), "a tuple of 0 values"),
        ([1, 2, 3, 4], "a list of 4 values"),
        ((torch.zeros(()), None), "a tuple of 2 values (a tensor of shape () and dtype float32, None)"),
        ([[[0]]], "a list of 1 value (a list of 1 value)"),
        ({"x": 1}, "an object of type dict"),
        (Robot(), "an object of type Robot"),
    ],
)
def test_what_a_value_is(value, text):
    assert described(value) == text
