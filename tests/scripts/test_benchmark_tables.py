"""docs/benchmarks.md says what the raw JSON says."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from es_flipout.bench.plots import SOURCE, fingerprint
from scripts import benchmark_tables
from scripts.benchmark_tables import (
    NOT_YET,
    PAGE,
    RESULTS,
    TABLES,
    WARP_PARTS,
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


def test_tables_of_a_gpu_are_made_of_what_gpu_sh_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    tables = [name for name in TABLES if name.startswith("gpu_")]
    assert {TABLES[name]() for name in tables} == {NOT_YET}
    one, everything = "process pool, 1 worker", "everything on the GPU, 1,024 slots"
    rates = {f"{one}: env steps/s": 2e3, f"{everything}: env steps/s": 3e5}
    rates |= {f"{one}: members/s": 1e2, f"{everything}: members/s": 1e4}
    rates |= {f"{everything}, physics alone: env steps/s": 3.2e5}
    document = {
        "rounds": [rates],
        "cores": {one: 1, everything: 1},
        "ratios": {f"{everything} / 1 worker": [150.0], f"{everything} / physics alone": [0.9375]},
        "gpu_memory_bytes": {one: 0, everything: 3_000_000_000},
    }
    for name in ("throughput_gpu_Humanoid-v5", "throughput_gpu_cores_Humanoid-v5"):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    parts = dict.fromkeys(WARP_PARTS, 1.0) | {"env_steps": 1_000_000}
    (tmp_path / "profile_gpu_Humanoid-v5.json").write_text(json.dumps({"rounds": [parts]}))
    for name in ("update", "policy"):
        (tmp_path / f"{name}_cuda.json").write_text((RESULTS / f"{name}_cpu.json").read_text())
    milestone = {
        "minutes": 9.9,
        "generation": 40,
        "env_steps": 5_000_000,
        "last_centre_score": 1234.5,
        "median_env_steps_per_second": 2e5,
        "median_live_share": 0.875,
    }
    (tmp_path / "train_gpu.json").write_text(json.dumps({"milestones": [milestone]}))
    texts = {name: TABLES[name]() for name in tables}
    rows = {name: [line for line in text.splitlines() if line[:1] == "|"][2:] for name, text in texts.items()}
    assert list(pictures("".join(texts.values()))) == [
        tmp_path / f"{name}.png"
        for name in (
            "throughput_gpu_Humanoid-v5",
            "throughput_gpu_cores_Humanoid-v5",
            "policy_cuda",
            "update_cuda",
        )
    ]
    assert rows["gpu_throughput"] == rows["gpu_cores"]
    assert rows["gpu_throughput"][1] == (
        "| everything on the GPU, 1,024 slots | 300,000 (300,000 to 300,000) | 10,000 "
        "| **150 (150 to 150)** | 320,000 | 0.94 (0.94 to 0.94) | 3.00 |"
    )
    assert rows["gpu_profile"][0].endswith("| 1.00 | 16.7% |")
    assert rows["gpu_training"] == ["| 10 min | 40 | 5,000,000 | 1,234 | 200,000 | 88% |"]
    assert len(rows["gpu_update"]) == len(load("update_cuda")["results"])
    assert len(rows["gpu_forwards"]) == len(load("policy_cuda")["results"])


def test_a_table_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="three"):
        with_tables("<!-- table: three -->\n<!-- end -->")
