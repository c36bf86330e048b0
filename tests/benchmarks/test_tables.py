"""docs/benchmarks.md and docs/paper.md say what the results say, and their pictures show them."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from benchmarks.paper import tables as paper
from benchmarks.plots import SOURCE, fingerprint
from benchmarks.speed import configs, physics
from benchmarks.speed.tables import (
    before_after_table,
    configs_table,
    env_table,
    limits_table,
    markdown,
    physics_table,
    profile_table,
    startup_table,
    two_decimals,
)
from benchmarks.tables import NOT_YET, PAGE, PICTURES, RESULTS, TABLES, if_measured, load, with_tables
from es_flipout.cli.results import Results


def rows_of(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its heads."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


@pytest.mark.parametrize(
    ("page", "tables", "pictures"),
    [(PAGE, TABLES, PICTURES), (paper.PAGE, paper.TABLES, paper.PICTURES)],
    ids=["benchmarks", "paper"],
)
def test_the_page_has_every_table_as_the_results_give_it(page, tables, pictures):
    text = page.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == list(tables)
    assert with_tables(text, tables) == text
    assert re.findall(r"!\[[^]]*\]\(\.\./benchmarks/results/([^)]+)\.png\)", text) == list(pictures)


@pytest.mark.parametrize("name", [*PICTURES, *paper.PICTURES])
def test_a_picture_shows_the_results_beside_it(name):
    shown = paper.PICTURES[name]() if name in paper.PICTURES else load(name)
    with Image.open(RESULTS / f"{name}.png") as image:
        assert image.text[SOURCE] == fingerprint(shown.rows)


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
    for index, (in_physics, in_policy, steps) in enumerate([(3.0, 1.0, 10), (1.0, 1.0, 10), (2.0, 2.0, 2)]):
        results.add(index, "all parts", {"env steps": steps})
        results.add(index, "physics", {"s": in_physics})
        results.add(index, "policy", {"s": in_policy})
    # 0.3, 0.1 and 1 s per step; shares of 3/4, 1/2 and 1/2
    assert rows_of(profile_table(["physics", "policy"], results))[0] == ["physics", "300,000, 50.0%"]


def test_a_table_without_results_says_so():
    assert if_measured("nothing", env_table) == NOT_YET
    assert paper.measured("nothing", make=env_table) == NOT_YET


def test_a_table_of_the_paper_says_how_each_document_was_measured(tmp_path, monkeypatch):
    machine = {"cores": 2, "processor": "Some CPU", "python": "3.11.7", "torch": "2.13.0"}
    settings = {"machine": machine, "versions": {"ours": {"torch": "2.13.0"}, "theirs": {"jax": "0.4"}}}
    for name in ("a", "b"):
        command = f"python -m program {name} --json build/{name}.json --quick"
        Results({**settings, "command": command}).write(tmp_path / f"{name}.json")
    for module in ("benchmarks.tables", "benchmarks.paper.tables"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path)
    assert paper.measured("a", "b", "c", make=lambda *documents: f"{len(documents)} of 3").split("\n\n") == [
        "**2 cores of Some CPU**, no GPU; Python 3.11.7, torch 2.13.0, jax 0.4",
        "`python -m program a --quick`",
        "`python -m program b --quick`",
        "2 of 3",
    ]


def test_a_loop_has_its_share_of_bare_physics_by_case():
    results = Results({})
    for members, rates in ((16, (10.0, 30.0)), (512, (20.0, 20.0))):
        case = {"task": "Some-v0", "policy": "mlp", "members": members, "envs": min(members, 128)}
        results.add(0, physics.PHYSICS, {physics.LENGTH: 50.0}, **case)
        results.add(0, physics.LOOP, {physics.PROCESSES: 2}, **case)
        for index, rate in enumerate(rates):
            results.add(index, physics.LOOP, {"env steps/s": rate}, **case)
            results.add(index, physics.PHYSICS, {"env steps/s": 40.0}, **case)
            if members == 16:
                results.add(index, physics.POOL, {"env steps/s": 10.0}, **case)
    assert rows_of(physics_table(results)) == [
        ["Some-v0, mlp", "16", "2", "50.0", "20.0", "40.0", two_decimals([0.25, 0.75]), two_decimals([1, 3])],
        ["Some-v0, mlp", "512, 128 envs", "2", "50.0", "20.0", "40.0", two_decimals([0.5, 0.5]), "-"],
    ]


def test_es_train_has_its_share_of_plain_loops_and_scores_their_share_of_the_time():
    results = Results({})
    for name, values in {configs.ES_TRAIN: (6.0, 8.0), configs.UNSCORED: (8.0, 8.0)}.items():
        for index, value in enumerate(values):
            figures = {"env steps/s": value, "env steps/s, those of scores included": value + 1}
            results.add(index, name, figures, config="some.yaml")
            results.add(index, configs.BARE, {"env steps/s": 10.0}, config="some.yaml")
    [row] = rows_of(configs_table(results))
    shares = [two_decimals(each) for each in ([0.6, 0.8], [0.7, 0.9], [0.25, 0.0])]
    assert row == ["some.yaml", "7.00", "10.0", *shares]


def test_start_up_and_whole_runs_are_compared_with_another_version():
    results = Results({"config": "some.yaml"})
    for name, cold, warm in (("this version", 4.0, 2.0), ("the other version", 8.0, 2.0)):
        results.add(0, name, {"cold, s": cold, "warm, s": warm})
    assert rows_of(startup_table(results))[-1][1:] == [two_decimals([0.5]), two_decimals([1.0])]
    runs = Results({})
    for name, seconds, score in (("before", 600.0, 7.0), ("after", 300.0, 8.0)):
        runs.add(0, name, {"s": seconds, "score": score, "env steps": 1000}, config="some.yaml")
    [row] = rows_of(before_after_table(runs))
    assert row == ["some.yaml", "1,000", "10.0", "5.00", two_decimals([2.0]), "7.0", "8.0"]
