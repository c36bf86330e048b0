"""docs/benchmarks.md says what the results say, and its pictures show them."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from benchmarks.plots import SOURCE, fingerprint
from benchmarks.speed.tables import env_table, limits_table, markdown, profile_table, two_decimals
from benchmarks.tables import PAGE, PICTURES, RESULTS, TABLES, load, with_tables
from es_flipout.cli.results import Results


def rows_of(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its heads."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == list(TABLES)
    assert with_tables(text) == text
    assert re.findall(r"!\[[^]]*\]\(\.\./benchmarks/results/([^)]+)\.png\)", text) == list(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_the_results_beside_it(name):
    with Image.open(RESULTS / f"{name}.png") as image:
        assert image.text[SOURCE] == fingerprint(load(name).rows)


def test_a_picture_is_drawn_from_its_results_alone(tmp_path):
    results = load("update_cpu")
    PICTURES["update_cpu"](tmp_path / "a.png", results)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text[SOURCE] == fingerprint(results.rows) != fingerprint(results.rows[1:])


def test_a_table_is_made_anew_and_the_rest_is_left_alone(monkeypatch):
    monkeypatch.setitem(TABLES, "two", lambda: markdown(["", "x"], [["a", "1"], ["b", "2"]]))
    text = with_tables("before\n<!-- table: two -->\nold\n<!-- end -->\nafter\n")
    table = "|  | x |\n| --- | ---: |\n| a | 1 |\n| b | 2 |"
    assert text == f"before\n<!-- table: two -->\n\n{table}\n\n<!-- end -->\nafter\n"


def test_a_table_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="three"):
        with_tables("<!-- table: three -->\n<!-- end -->")


def test_rates_are_work_over_time_and_their_share_of_the_limit_in_the_same_round():
    results = Results({})
    case = {"policy": "MLP", "population_size": 8}
    for name, operation, times in (
        ("flipout", "forward", (2.0, 1.0, 4.0)),
        ("float32 matmul", "limit", (1.0, 4.0, 2.0)),
        ("triad", "limit", (1.0, 1.0, 1.0)),
    ):
        results.add(0, name, {f"{operation}, FLOP": 4e9, f"{operation}, bytes": 8e9}, **case)
        for index, seconds in enumerate(times):
            results.add(index, name, {f"{operation}, s": seconds}, **case)
    # 2, 4 and 1 GFLOP/s, of limits of 4, 1 and 2; 4, 8 and 2 GB/s, of a limit of 8
    assert rows_of(limits_table(results))[0] == ["forward: flipout", "2,000", "2.00", "50%", "4.00", "50%"]


def test_the_best_of_gymnasium_is_the_best_of_each_round():
    results = Results({"env": "Some-v0", "population_size": 4})
    rates = {
        "native vector environment": (10.0, 30.0),
        "raw physics, random actions": (20.0, 40.0),
        "training loop": (5.0, 20.0),
        "raw physics, the policies' actions": (10.0, 20.0),
        "Gymnasium SyncVectorEnv": (5.0, 2.0),
        "Gymnasium AsyncVectorEnv": (2.0, 3.0),
        "Gymnasium AsyncVectorEnv, 1 env per core": (1.0, 1.0),
        "Gymnasium AsyncVectorEnv, 8 envs per core": (1.0, 1.0),
    }
    for name, values in rates.items():
        for index, value in enumerate(values):
            results.add(index, name, {"env steps/s": value})
    [[_, native, loop, random, best, *_]] = rows_of(env_table(results))
    assert (native, loop) == (two_decimals([0.5, 0.75]), two_decimals([0.5, 1.0]))
    assert (random, best) == (two_decimals([0.25, 0.5]), two_decimals([2.0, 10.0]))


def test_a_part_has_its_cost_per_env_step_and_its_share():
    results = Results({"env": "Some-v0", "num_envs": 8})
    for index, (physics, policy, steps) in enumerate([(3.0, 1.0, 10), (1.0, 1.0, 10), (2.0, 2.0, 2)]):
        results.add(index, "all parts", {"env steps": steps})
        results.add(index, "physics", {"s": physics})
        results.add(index, "policy", {"s": policy})
    # 0.3, 0.1 and 1 s per step; shares of 3/4, 1/2 and 1/2
    assert rows_of(profile_table(["physics", "policy"], results))[0] == ["physics", "300,000, 50.0%"]
