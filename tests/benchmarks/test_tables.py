"""docs/benchmarks.md says what the raw JSON says."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from es_flipout.bench.plots import SOURCE, fingerprint
from scripts.benchmark_tables import (
    PAGE,
    RESULTS,
    TABLES,
    load,
    markdown,
    pictures,
    redraw,
    with_tables,
)


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == list(TABLES)
    assert with_tables(text) == text


def test_a_table_is_made_anew_and_the_rest_is_left_alone(monkeypatch):
    monkeypatch.setitem(TABLES, "two", lambda: markdown(["", "x"], [["a", "1"], ["b", "2"]]))
    text = with_tables("before\n<!-- table: two -->\nold\n<!-- end -->\nafter\n")
    table = "|  | x |\n| --- | ---: |\n| a | 1 |\n| b | 2 |"
    assert text == f"before\n<!-- table: two -->\n\n{table}\n\n<!-- end -->\nafter\n"


@pytest.mark.parametrize("path", [path.name for path in pictures(PAGE.read_text())])
def test_a_picture_shows_the_document_beside_it(path):
    document = pictures(PAGE.read_text())[RESULTS / path]
    with Image.open(RESULTS / path) as image:
        assert image.text[SOURCE] == fingerprint(document)


def test_a_picture_is_drawn_of_its_document_alone(tmp_path):
    document = load("update_cpu")
    redraw(tmp_path / "a.png", document)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text[SOURCE] == fingerprint(document) != fingerprint({**document, "seed": 1})


def test_a_table_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="three"):
        with_tables("<!-- table: three -->\n<!-- end -->")
