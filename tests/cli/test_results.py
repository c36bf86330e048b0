"""The long table: medians and ratios within a round, on figures worked out by hand; writing and reading."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_flipout.cli.results import Results, Spread, number
from es_flipout.cli.score_report import figure


@pytest.fixture
def results() -> Results:
    results = Results({"command": "it", "seed": 0})
    for index, (a, b) in enumerate([(4.0, 2.0), (9.0, 1.0), (1.0, 5.0), (3.0, 1.0)]):
        results.add(index, "a", {"s": a, "GB": 10 * a}, size=8)
        results.add(index, "b", {"s": b}, size=8)
    results.add(0, "a", {"s": 100.0}, size=16)
    return results


def test_figures_are_medians_over_rounds(results):
    small = results.where(size=8)
    assert small.by_round("a", "s") == {0: 4.0, 1: 9.0, 2: 1.0, 3: 3.0}
    assert small.spread("a", "s") == Spread(3.5, 1.0, 9.0)
    assert str(small.spread("a", "s")) == "3.50 (1.00 to 9.00)"
    assert small.by_round("b", "GB") == {}


def test_ratios_are_taken_within_a_round(results):
    small = results.where(size=8)
    # The ratio of the medians would be 3.5 / 1.5, the median of the ratios is 2.5.
    assert small.ratios(("a", "s"), ("b", "s")) == [2.0, 9.0, 0.2, 3.0]
    small.rows = [row for row in small.rows if (row["contestant"], row["round"]) != ("b", 1)]
    assert small.ratios(("a", "s"), ("b", "s")) == [2.0, 0.2, 3.0]


def test_columns_are_in_the_order_of_the_rows(results):
    assert (results.column("size"), results.column("contestant")) == ([8, 16], ["a", "b"])


def test_what_is_written_is_read(results, tmp_path):
    results.write(tmp_path / "it.json")
    assert Results.read(tmp_path / "it.json") == results
    document = json.loads((tmp_path / "it.json").read_text())
    assert document["rows"][0] == {"size": 8, "contestant": "a", "metric": "s", "round": 0, "value": 4.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1.5, "1.50"), (12345.6, "12,346"), (0, "0"), (math.nan, "nan"), (-2.5, "-2.50")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001234, "0.001234"),
        (0.385, "0.385"),
        (6780.3, "6780.3"),
        (-12.35, "-12.35"),
        (0.0, "0.0"),
        (100, "100.0"),
        (0.99996, "1.0"),
        (1.23456e-9, "1.235e-09"),
        (-2.5e15, "-2.5e+15"),
        (math.nan, "nan"),
    ],
)
def test_figures_have_four_digits_and_a_decimal(value, text):
    assert figure(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_figure_is_near_its_number(value):
    assert float(figure(value)) == pytest.approx(value, rel=5.1e-4, abs=0)
