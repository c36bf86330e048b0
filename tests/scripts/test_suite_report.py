"""docs/results.md says what the raw JSON says, and its policies are the ones that were scored."""

from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from benchmarks.plots import SOURCE, fingerprint
from benchmarks.tables import ROOT, with_tables
from es_flipout.cli.arguments import load_config
from es_flipout.run.run_directory import RunDirectory
from scripts.suite_report import PAGE, RUN, TABLES, documents_of, half_width, mean_curve, picture_of
from scripts.train_suite import score

PRETRAINED = sorted(path.name for path in (ROOT / "pretrained").iterdir())


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert sorted(re.findall(r"<!-- table: (\w+) -->", text)) == RUN
    assert with_tables(text, TABLES) == text


@pytest.mark.parametrize("suite", RUN)
def test_a_picture_shows_the_documents_of_its_suite(suite):
    with Image.open(picture_of(suite)) as image:
        assert image.text[SOURCE] == fingerprint({"documents": documents_of(suite)})


def test_the_interval_is_that_of_students_t():
    # scipy.stats.t.interval(0.95, 2, mean, sem) of 1, 2, 3: 2 -+ 2.4841
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-4)


def test_a_mean_curve_ends_where_the_shortest_does():
    curves = [
        {"score": [1.0, 5.0, 9.0], "seconds": [2, 4, 6]},
        {"score": [3.0, 6.0], "seconds": [4, 8]},
    ]
    assert mean_curve(curves) == {"score": [2.0, 5.5], "seconds": [3.0, 6.0]}


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_policy_is_the_one_that_was_scored(name, tmp_path):
    shutil.copytree(ROOT / "pretrained" / name, tmp_path, dirs_exist_ok=True)
    run = RunDirectory.open(tmp_path)
    (document,) = (each for each in documents_of("published") if each["name"] == name)
    scored = next(each for each in document["runs"] if each["seed"] == load_config(run.config).seed)
    # A few of the episodes; chaotic tasks differ from machine to machine, but not in what they come to.
    found = score(run, load_config(run.config), 4)
    assert found["generation"] == scored["generation"]
    assert found["score"] == pytest.approx(scored["score"], rel=0.3)
