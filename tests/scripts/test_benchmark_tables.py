"""docs/benchmarks.md says what the raw JSON says."""

from __future__ import annotations

import re

import pytest

from scripts.benchmark_tables import PAGE, TABLES, markdown, with_tables


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == list(TABLES)
    assert with_tables(text) == text


def test_a_table_is_made_anew_and_the_rest_is_left_alone(monkeypatch):
    monkeypatch.setitem(TABLES, "two", lambda: markdown(["", "x"], [["a", "1"], ["b", "2"]]))
    text = with_tables("before\n<!-- table: two -->\nold\n<!-- end -->\nafter\n")
    table = "|  | x |\n| --- | ---: |\n| a | 1 |\n| b | 2 |"
    assert text == f"before\n<!-- table: two -->\n\n{table}\n\n<!-- end -->\nafter\n"


def test_a_table_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="three"):
        with_tables("<!-- table: three -->\n<!-- end -->")
