"""es-bench as a user runs it, with tiny sizes: what it prints and writes, and what it says to mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchrun

from es_flipout.cli import bench, benching
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import (
    ENV_STEPS,
    GATHERING,
    MEMBERS,
    MEMORY,
    PER_GENERATION,
    PHYSICS,
    UPDATING,
    WAITING,
)

TINY = [
    *("--env", "InvertedPendulum-v5", "--env-kwargs", "{max_episode_steps: 20}", "--num-envs", "8"),
    *(
        "--population-size",
        "16",
        "--hidden-sizes",
        "4",
        "--threads",
        "1",
        "--rounds",
        "2",
        "--seconds",
        "0.001",
    ),
]
POOL, PAIR, WARP = (
    "process pool, 1 worker",
    "process pool, 2 workers",
    "everything on the CPU, by mujoco_warp, 4 envs",
)


def test_throughput(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # that would be one contestant more
    warp = ["--warp-envs", "4", "--warp-members-per-env", "6", "--warp-device", "cpu"]
    assert bench.main(["throughput", *TINY, "--workers", "2", *warp, "--out", "out/here"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""  # no terminal, no progress bar
    path = "out/here/throughput_InvertedPendulum-v5.json"
    assert path in printed
    results = Results.read(Path(path))
    settings = results.settings
    assert settings["command"].startswith(
        "es-bench throughput --env InvertedPendulum-v5 --env-kwargs '{max_ep"
    )
    assert settings["machine"]["torch"] == torch.__version__
    assert list(settings["contestants"]) == results.column("contestant") == [POOL, PAIR, "vectorized", WARP]
    assert [each["workers"] for each in settings["contestants"].values()] == [1, 2, None, None]
    for name, each in settings["contestants"].items():
        assert name in printed
        # A generation has the same episodes, whoever plays them; of 6 x 4 members on engine warp.
        assert each["population_size"] == (24 if name == WARP else 16)
        (steps,) = results.by_round(name, PER_GENERATION).values()
        assert each["population_size"] < steps <= each["population_size"] * 20
        per_member = results.ratios((name, ENV_STEPS), (name, MEMBERS))
        assert per_member == pytest.approx([steps / each["population_size"]] * 2)
        assert results.by_round(name, MEMORY) == {0: 0}
        assert len(results.by_round(name, PHYSICS)) == (2 if name == WARP else 0)
    own = [results.by_round(name, PER_GENERATION)[0] for name in (POOL, PAIR, "vectorized")]
    assert len(set(own)) == 1


def test_the_table_is_of_medians_and_of_ratios_within_a_round():
    def contestant(cores, workers, device="cpu"):
        return {"cores": cores, "workers": workers, "device": device}

    contestants = {POOL: contestant(1, 1), PAIR: contestant(2, 2), "gpu": contestant(1, None, "cuda")}
    results = Results({"contestants": contestants, "price_per_hour": {"core": 0.5, "machine": 3.0}})
    for index, rates in enumerate([(100.0, 150.0, 1000.0), (200.0, 380.0, 1800.0), (300.0, 540.0, 6000.0)]):
        for name, rate in zip(contestants, rates, strict=True):
            results.add(index, name, {ENV_STEPS: rate, MEMBERS: rate / 10})
    results.add(0, "gpu", {MEMORY: 3e9})
    for index, rate in enumerate([2000.0, 2000.0, 24000.0]):
        results.add(index, "gpu", {PHYSICS: rate})
    heads, one, two, gpu = benching.table(results)
    assert heads[-4:] == [PHYSICS, "of it", "GPU memory, GB", "price of 10^9 steps"]
    # 10^9 steps take 10^9 / 200 / 3600 = 1388.9 hours of 0.5
    assert one == [POOL, "200 (100 to 300)", "20.0", "100%", "", "", "", "694"]
    assert two == [PAIR, "380 (150 to 540)", "38.0", "90%", "", "", "", "731"]  # 0.75, 0.95, 0.9
    assert gpu == ["gpu", "1,800 (1,000 to 6,000)", "180", "10.0 cores", "2,000", "50%", "3.00", "463"]


MISTAKES = [
    ("", "the following arguments are required: BENCH"),
    ("speed", "invalid choice: 'speed'"),
    ("throughput --rounds 0", "--rounds: must be an integer >= 1, got 0"),
    ("throughput --seconds inf", "--seconds: must be a number > 0, got inf"),
    ("throughput --seed -1", "--seed: must be an integer >= 0, got -1"),
    ("throughput --num-envs many", "--num-envs: must be an integer >= 1, got many"),
    ("throughput --workers 2 0", "--workers: must be an integer >= 1, got 0"),
    ("throughput --env-kwargs [1]", "must be keys and values in YAML, such as {frame_skip: 4}, got '[1]'"),
    ("throughput --env-kwargs {a:1", "--env-kwargs: not valid YAML"),
    ("throughput --env-kwargs {a:,a:}", "appears twice"),
    ("throughput --env Humanod-v5", "unknown environment 'Humanod-v5'"),
    ("throughput --population-size 3", "es.population_size must be even"),
    ("throughput --out file", "--out: cannot make the folder file"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(words, message, capsys):
    Path("file").write_text("")
    assert bench.main(words.split()) == 2
    printed, errors = capsys.readouterr()
    assert message in errors
    assert (errors.count("\n"), printed) == (1, "")


def test_a_device_or_an_engine_that_cannot_be_used_is_told(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cart_pole = ["--env", "CartPole-v1", "--env-kwargs", "{}", "--workers", "1", "--warp-envs", "8"]
    assert bench.main(["throughput", *TINY, *cart_pole, "--warp-device", "cpu"]) == 2
    assert "engine 'warp' runs native tasks only, not CartPole-v1" in capsys.readouterr().err
    assert bench.main(["throughput", *TINY, *cart_pole]) == 2
    assert "device 'cuda' is not available" in capsys.readouterr().err


def test_quick_changes_defaults_and_no_more():
    quick = bench._parse(["throughput", "--quick"])
    given = bench._parse(["throughput", "--quick", "--seconds", "7"])
    assert (given.seconds, vars(given)) == (7, {**vars(quick), "seconds": 7})
    assert quick.seconds < bench._parse(["throughput"]).seconds


@pytest.mark.parametrize(("cores", "workers"), [(1, {1}), (4, {1, 2, 4}), (6, {1, 2, 4, 6})])
def test_pools_have_powers_of_two_and_every_core(cores, workers):
    assert set(benching._up_to(cores)) == workers


@pytest.mark.slow
def test_throughput_of_ranks():
    words = [
        str(Path(sys.executable).with_name("es-bench")),
        "throughput",
        *TINY,
        "--ranks",
        "2",
        "--out",
        "out",
    ]
    launch = [*torchrun.LAUNCHER, "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    results = Results.read(Path("out/throughput_InvertedPendulum-v5.json"))
    assert list(results.settings["contestants"]) == results.column("contestant") == ["1 rank", "2 ranks"]
    steps = {name: results.by_round(name, PER_GENERATION)[0] for name in ("1 rank", "2 ranks")}
    assert steps["1 rank"] == steps["2 ranks"] > 16  # the same episodes
    for index in (0, 1):
        assert results.by_round("1 rank", GATHERING)[index] == 0
        assert results.by_round("2 ranks", GATHERING)[index] > 0
        assert results.by_round("2 ranks", UPDATING)[index] > 0
        assert results.by_round("2 ranks", WAITING)[index] >= 0
    assert done.stdout.count("gathering, ms") == 1  # rank 0 alone prints


def test_ranks_need_torchrun(capsys):
    assert bench.main(["throughput", *TINY, "--ranks", "2"]) == 2
    assert "--ranks needs torchrun" in capsys.readouterr().err
