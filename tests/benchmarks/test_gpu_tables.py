"""The GPU tables of docs/benchmarks.md say what the documents of benchmarks/gpu.sh say, a card at a time."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.gpu import tables
from benchmarks.gpu.tables import DOCUMENTS, NOT_YET, TABLES, take
from scripts.benchmark_tables import PAGE, RESULTS, with_tables
from scripts.profile_device import PARTS

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


def machine(gpu):
    return {"gpu": gpu, "cores": 16, "processor": "Some Xeon", "torch": "2.11.0+cu130", "python": "3.12.3"}


def throughput_rows(factor):
    """Two rounds of 1,024 and 4,096 envs: training is 100 and 200 times a worker, 0.8 and 0.5 of physics."""
    rows = []

    def add(num_envs, contestant, metric, *values):
        for index, value in enumerate(values):
            row = {"num_envs": num_envs, "contestant": contestant, "metric": metric, "round": index}
            rows.append({**row, "value": value})

    for num_envs, lead, share in ((4096, 200, 0.5), (1024, 100, 0.8)):
        one = 1000.0 * factor, 2000.0 * factor
        training = [lead * each for each in one]
        add(num_envs, "everything on the device", "GPU memory, bytes", 3_000_000_000)
        add(num_envs, "everything on the device", "env steps/s", *training)
        add(num_envs, "everything on the device", "members/s", *(each / 100 for each in training))
        add(num_envs, "physics alone", "env steps/s", *(each / share for each in training))
        add(num_envs, "process pool, 1 worker", "env steps/s", *one)
        add(num_envs, "process pool, 1 worker", "members/s", *(each / 100 for each in one))
    return rows


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder for the results, and one with what a GPU of that name would leave."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()

    def leave(gpu, factor=1.0):
        folder = tmp_path / gpu
        folder.mkdir()
        milestone = {
            "minutes": 0.5,
            "generation": 40,
            "env_steps": 5_000_000,
            "last_score": 1234.5,
            "median_env_steps_per_second": 2e5,
            "median_live_share": 0.875,
        }
        scores = {"mean": 1234.56, "standard_error": 7.0, "failed": 0, "returns": [1.0, 2.0]}
        documents = {
            "forwards": {"results": json.loads((RESULTS / "policy_cpu.json").read_text())["results"]},
            "update": {"results": json.loads((RESULTS / "update_cpu.json").read_text())["results"]},
            "throughput": {"command": "python -m it", "rows": throughput_rows(factor)},
            "profile": {"rounds": [dict.fromkeys(PARTS, 1.0) | {"env_steps": 1_000_000}]},
            "train": {"milestones": [milestone], "config": {"init_from": "some/run"}},
            "engines": {"engines": {"official environment": scores, "engine warp": scores}},
        }
        for name, document in documents.items():
            (folder / f"{name}.json").write_text(json.dumps({**document, "machine": machine(gpu)}))
        return folder

    return leave


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_without_documents_every_table_says_so(results):
    assert {table() for table in TABLES.values()} == {NOT_YET}


def test_tables_are_made_of_what_was_measured(results):
    take(results(H100), tables.RESULTS)
    texts = {name: table() for name, table in TABLES.items()}
    for text in texts.values():
        assert text.startswith(f"**{H100}**, 16 cores of Some Xeon; torch 2.11.0+cu130")
    assert "`python -m it`" in texts["throughput"]
    assert rows_of(texts["throughput"]) == [
        "| process pool, 1 worker | 1,500 (1,000 to 2,000) | 15.0 |  |  |  |  |",
        "| 1,024 envs, everything on the device | 150,000 (100,000 to 200,000) | 1,500 "
        "| **100 (100 to 100)** | 187,500 | 0.80 (0.80 to 0.80) | 3.00 |",
        "| 4,096 envs, everything on the device | 300,000 (200,000 to 400,000) | 3,000 "
        "| **200 (200 to 200)** | 600,000 | 0.50 (0.50 to 0.50) | 3.00 |",
    ]
    assert rows_of(texts["profile"])[0].endswith("| 1.00 | 16.7% |")
    assert rows_of(texts["train"]) == ["| 0.5 min | 40 | 5,000,000 | 1,234 | 200,000 | 88% |"]
    assert "It begins with the policy of `some/run`." in texts["train"]
    assert rows_of(texts["engines"])[0] == "| official environment | 1,234.6 ± 7.0 | 0 |"
    assert len(rows_of(texts["forwards"])) == 9
    assert len(rows_of(texts["update"])) == 8


def test_cards_stand_apart(results):
    for gpu, factor, name in ((H200, 2.0, "h200"), (H100, 1.0, "h100_80gb_hbm3")):
        copies = take(results(gpu, factor), tables.RESULTS)
        assert [path.name for path in copies] == [f"gpu_{name}_{document}.json" for document in DOCUMENTS]
    text = TABLES["throughput"]()
    one, other = text.split(f"**{H200}**")
    assert one.startswith(f"**{H100}**")
    assert "1,500 (1,000 to 2,000)" in one
    assert "3,000 (2,000 to 4,000)" in other


def test_a_rehearsal_is_no_result(results, tmp_path):
    folder = results(H100)
    (folder / "update.json").write_text(json.dumps({"results": [], "machine": {"torch": "2.13.0"}}))
    with pytest.raises(ValueError, match=r"update.json: it was measured without a GPU$"):
        take(folder, tables.RESULTS)
    assert not list(tables.RESULTS.iterdir())
    with pytest.raises(ValueError, match=r"holds none of forwards.json, update.json"):
        take(tmp_path / "results", tables.RESULTS)


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert re.findall(r"<!-- gpu: (\w+) -->", text) == list(TABLES)
    assert with_tables(text, TABLES, "gpu") == text
