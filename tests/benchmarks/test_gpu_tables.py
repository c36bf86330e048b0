"""The GPU tables of docs/benchmarks.md say what the documents of benchmarks/gpu.sh say, a card at a time."""

from __future__ import annotations

import json
import math
import re

import pytest

from benchmarks.gpu import tables
from benchmarks.gpu.tables import DOCUMENTS, NOT_YET, TABLES, take
from benchmarks.speed.device import PARTS
from benchmarks.tables import PAGE, load, with_tables
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS, MEMBERS, MEMORY, ONE_WORKER, PHYSICS

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


def machine(gpu):
    return {"gpu": gpu, "cores": 16, "processor": "Some Xeon", "torch": "2.11.0+cu130", "python": "3.12.3"}


def throughput(settings, factor):
    """Two rounds each of 1,024 and 4,096 envs: 100 and 200 times a worker, and 0.8 of physics."""
    sizes = {
        f"everything on the GPU, {num_envs:,} envs": lead for num_envs, lead in ((1024, 100), (4096, 200))
    }
    results = Results({**settings, "price_per_hour": {}, "contestants": {}})
    results.settings["contestants"][ONE_WORKER] = {"cores": 1, "workers": 1, "device": "cpu"}
    for block, (name, lead) in enumerate(sizes.items()):
        results.settings["contestants"][name] = {"cores": 1, "workers": None, "device": "cuda"}
        results.add(2 * block, name, {MEMORY: 3_000_000_000})
        for index, one in ((2 * block, 1000.0 * factor), (2 * block + 1, 2000.0 * factor)):
            rate = lead * one
            results.add(index, name, {ENV_STEPS: rate, MEMBERS: rate / 100, PHYSICS: rate / 0.8})
            results.add(index, ONE_WORKER, {ENV_STEPS: one, MEMBERS: one / 100})
    return results


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
        settings = {"machine": machine(gpu)}
        profile = Results({**settings, "env": "Humanoid-v5", "num_envs": 8192})
        profile.add(0, "all parts", {"env steps": 1_000_000})
        engines = Results(settings)
        for part in PARTS:
            profile.add(0, part, {"s": 1.0})
        for engine in ("official environment", "engine warp"):
            for index, value in enumerate((1227.56, 1241.56, math.nan)):
                engines.add(index, engine, {"return": value})
        documents = {
            "forwards": load("policy_cpu"),
            "update": load("update_cpu"),
            "throughput": throughput({"command": "python -m it"}, factor),
            "profile": profile,
            "engines": engines,
        }
        for name, results in documents.items():
            results.settings |= settings
            results.write(folder / f"{name}.json")
        train = {"milestones": [milestone], "config": {"init_from": "some/run"}, **settings}
        (folder / "train.json").write_text(json.dumps(train))
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
        "| process pool, 1 worker | 1,500 (1,000 to 2,000) | 15.0 | 100% |  |  |  |",
        "| everything on the GPU, 1,024 envs | 150,000 (100,000 to 200,000) | 1,500 | 100 cores "
        "| 187,500 | 80% | 3.00 |",
        "| everything on the GPU, 4,096 envs | 300,000 (200,000 to 400,000) | 3,000 | 200 cores "
        "| 375,000 | 80% | 3.00 |",
    ]
    assert rows_of(texts["profile"])[0].endswith("| 1.00, 16.7% |")
    assert rows_of(texts["train"]) == ["| 0.5 min | 40 | 5,000,000 | 1,234 | 200,000 | 88% |"]
    assert "It begins with the policy of `some/run`." in texts["train"]
    assert rows_of(texts["engines"])[0] == "| official environment | 1,234.6 ± 7.0 | 1 |"
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
    (folder / "update.json").write_text(json.dumps({"rows": [], "machine": {"torch": "2.13.0"}}))
    with pytest.raises(ValueError, match=r"update.json: it was measured without a GPU$"):
        take(folder, tables.RESULTS)
    assert not list(tables.RESULTS.iterdir())
    with pytest.raises(ValueError, match=r"holds none of forwards.json, update.json"):
        take(tmp_path / "results", tables.RESULTS)


def test_the_page_has_every_table_as_the_results_give_it():
    text = PAGE.read_text()
    assert re.findall(r"<!-- gpu: (\w+) -->", text) == list(TABLES)
    assert with_tables(text, TABLES, "gpu") == text
