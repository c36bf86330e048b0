"""es-bench as a user runs it, with tiny sizes: what it prints and writes, and what it says to mistakes."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from es_flipout.bench import memory
from es_flipout.bench.env import RATIOS
from es_flipout.bench.families import FAMILIES
from es_flipout.bench.throughput import Prices, Setup
from es_flipout.cli import bench
from es_flipout.run.config import Config

TINY_ENV = ["--env", "InvertedPendulum-v5", "--env-kwargs", "{max_episode_steps: 20}", "--slots", "8"]
TINY_POLICY = ["--population-size", "32", "16", "--width", "8", "--depth", "1", "2"]
FAST = ["--rounds", "2", "--seconds", "0.001"]


@dataclass
class Result:
    """What the command said, its exit status, and the document that it wrote."""

    status: int
    stdout: str
    stderr: str

    @staticmethod
    def document(name: str) -> dict[str, Any]:
        assert Path(f"out/here/{name}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads(Path(f"out/here/{name}.json").read_text())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run_here(*arguments: object) -> Result:
        status = bench.main(list(map(str, arguments)))
        return Result(status, *capsys.readouterr())

    return run_here


@pytest.fixture
def measure(run: Callable[..., Result]) -> Callable[..., Result]:
    """Runs a bench into a folder that does not exist yet."""

    def run_into_folder(*arguments: object) -> Result:
        threads = torch.get_num_threads()
        result = run(*arguments, "--out", "out/here")
        assert result.status == 0, result.stderr
        assert result.stderr == ""  # no terminal, no progress bar
        assert torch.get_num_threads() == threads
        return result

    return run_into_folder


def numbers(value: Any) -> Iterator[float]:
    """Returns all numbers in a document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, float):
        yield value


def assert_positive(*values: Any) -> None:
    found = [number for value in values for number in numbers(value)]
    assert found
    assert all(number > 0 and math.isfinite(number) for number in found)


def test_env(measure):
    result = measure("env", *TINY_ENV, *FAST, "--population-size", 16, "--threads", 1, "--hidden-sizes", 4)
    document = result.document("env_InvertedPendulum-v5")
    assert list(document) == [
        *("command", "env", "env_kwargs", "slots", "population_size", "hidden_sizes", "seed"),
        *("median_ratios", "ratios", "rounds", "machine"),
    ]
    assert document["command"].startswith("es-bench env --env InvertedPendulum-v5 --env-kwargs '{max_episode")
    assert (document["slots"], document["population_size"], document["hidden_sizes"]) == (8, 16, [4])
    assert document["env_kwargs"] == {"max_episode_steps": 20}
    assert document["machine"]["torch"] == torch.__version__
    assert list(document["ratios"]) == list(document["median_ratios"]) == list(RATIOS)
    assert [len(values) for values in document["ratios"].values()] == [2] * len(RATIOS)
    assert len(document["rounds"]) == 2
    assert_positive(document["rounds"], document["ratios"], document["median_ratios"])
    assert "native vector environment / its raw physics" in result.stdout
    assert "out/here/env_InvertedPendulum-v5.png" in result.stdout


@pytest.mark.parametrize("model", ["mlp", "gru", "convnet"])
def test_policy(measure, model):
    sizes = {"mlp": TINY_POLICY, "gru": TINY_POLICY[:-3], "convnet": ["--population-size", "16"]}[model]
    result = measure("policy", "--model", model, *sizes, *FAST, "--threads", 1, "--seed", 3)
    name = "policy_cpu" if model == "mlp" else f"policy_{model}_cpu"
    document = result.document(name)
    assert (document["model"], document["device"], document["seed"]) == (model, "cpu", 3)
    points = [(each["population_size"], each["width"], each["depth"]) for each in document["results"]]
    assert (
        points
        == {
            "mlp": [(32, 8, 1), (16, 8, 1), (32, 8, 2)],
            "gru": [(32, 8, 1), (16, 8, 1)],
            "convnet": [(16, 512, 1)],
        }[model]
    )
    for point in document["results"]:
        operations = {
            *(f"{what}: {family}" for what in ("forward", "ask", "gradient") for family in FAMILIES),
            *("forward: unperturbed", "forward: dense", "limit: float32 matmul", "limit: triad"),
        }
        assert len(point["rounds"]) == 2
        assert set(point["rounds"][0]) == set(point["medians"]) == set(point["achieved"]) == operations
        assert set(point["median_ratios"]) == {
            *(f"{name} / unperturbed" for name in (*FAMILIES, "dense")),
            *(f"dense / {name}" for name in FAMILIES),
        }
        assert_positive(point["rounds"], point["medians"], point["ratios"])
        assert point["parameters"] > 0
        # a limit is a share of 1 of itself; and rates are work over time
        for limit, kind in (("float32 matmul", "flops"), ("triad", "bytes")):
            assert point["achieved"][f"limit: {limit}"][f"share_of_{kind}_limit"] == 1
        for operation, rates in point["achieved"].items():
            times = [seconds[operation] for seconds in point["rounds"]]
            expected = sum(rates["bytes"] / seconds for seconds in times) / 2
            assert rates["bytes_per_second"] == pytest.approx(expected)
    for family in FAMILIES:
        assert family in result.stdout


def test_policy_leaves_out_independent_noise_that_does_not_fit(measure):
    # Eight thousandths of a MiB hold 16 members of 5 thousand weights of the dense forward in turns, no more.
    sizes = ["--population-size", "16", "--width", "8", "--depth", "1"]
    result = measure("policy", *sizes, *FAST, "--max-gib", 1e-5, "--threads", 1)
    (point,) = result.document("policy_cpu")["results"]
    assert "forward: dense" in point["medians"]
    assert not [name for name in point["medians"] if "independent" in name]
    assert "> --max-gib" in result.stdout


def test_policy_memory(measure, monkeypatch):
    # A process for each takes its time to start.
    families = ["flipout", "independent"]
    monkeypatch.setattr(memory, "FAMILIES", {name: FAMILIES[name] for name in families})
    result = measure("policy", "--memory", *("--population-size", "32", "--width", "8", "--rounds", "1"))
    document = result.document("policy_memory_cpu")
    assert document["policy"] == "MLP 348-8-8-17"
    assert document["population_size"] == 32
    assert [each["family"] for each in document["results"]] == families
    for each in document["results"]:
        assert list(each["rounds"][0]) == ["ask", "gradient", "tell", "peak_growth_bytes"]
        assert each["medians"] == each["rounds"][0]
        assert_positive(*(each["medians"][step] for step in ("ask", "gradient", "tell")))


def test_throughput(measure, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # that would be one contestant more
    sizes = ("--population-size", 16, "--hidden-sizes", 4, "--workers", 2, "--threads", 1)
    result = measure("throughput", *TINY_ENV, *FAST, *sizes, "--price-per-core-hour", 0.5)
    document = result.document("throughput_InvertedPendulum-v5")
    pool, pair = "process pool, 1 worker", "process pool, 2 workers"
    names = [pool, pair, "vectorized"]
    figures = [f"{name}: {what}" for name in names for what in ("env steps/s", "members/s")]
    assert len(document["rounds"]) == 2
    assert list(document["rounds"][0]) == list(document["medians"]) == figures
    assert document["cores"] == {pool: 1, pair: 2, "vectorized": 1}
    # All contestants run the same episodes.
    (steps,) = set(document["env_steps_a_generation"].values())
    assert 16 < steps <= 16 * 20
    for rates in document["rounds"]:
        for name in names:
            per_member = rates[f"{name}: env steps/s"] / rates[f"{name}: members/s"]
            assert per_member == pytest.approx(steps / 16)
    one, two, vectorized = (document["rounds"][0][f"{name}: env steps/s"] for name in names)
    ratios = {name: values[0] for name, values in document["ratios"].items()}
    assert ratios == {
        f"{pool} / (1 x 1 worker)": 1,
        f"{pair} / (2 x 1 worker)": pytest.approx(two / one / 2),
        "vectorized / 1 worker": pytest.approx(vectorized / one),
    }
    hours = [sum(1e9 / rates[f"{pair}: env steps/s"] for rates in document["rounds"]) / 2 / 3600]
    assert document["median_cost_of_1e9_env_steps"][pair] == pytest.approx(hours[0] * 2 * 0.5)
    assert "per 10^9 steps" in result.stdout


def test_throughput_of_engine_warp(measure, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ("--population-size", 16, "--hidden-sizes", 4, "--workers", 1, "--threads", 1)
    warp = ("--warp-slots", 2, 4, "--warp-members-a-slot", 6, "--warp-device", "cpu")
    document = measure("throughput", *TINY_ENV, *FAST, *sizes, *warp).document(
        "throughput_InvertedPendulum-v5"
    )
    rounds, steps = document["rounds"], document["env_steps_a_generation"]
    for count in (2, 4):
        name = f"everything on the CPU, by mujoco_warp, {count} slots"
        members = 6 * count
        assert document["gpu_memory_bytes"][name] == 0
        for rates, share in zip(rounds, document["ratios"][f"{name} / physics alone"], strict=True):
            rate = rates[f"{name}: env steps/s"]
            assert rate / rates[f"{name}: members/s"] == pytest.approx(steps[name] / members)
            assert share == pytest.approx(rate / rates[f"{name}, physics alone: env steps/s"])
            assert share > 0
        assert f"{name} / 1 worker" in document["ratios"]


def test_update(measure):
    sizes = ("--hidden-sizes", 32, "--conv-scales", 0.05, "--samples", 16, "--members-per-base", 4)
    result = measure("update", *sizes, *FAST, "--workers", 1, "--threads", 1, "--pool-samples", 9)
    document = result.document("update_cpu")
    assert (document["samples"], document["members_per_base"], document["workers"]) == (16, 4, 1)
    connected, convolutional = document["results"]
    assert (connected["name"], connected["size"]) == ("MLP 784-32-32-10", 32)
    assert connected["paper"] == {"FlipES, one GPU": 0.12, "cpuES, 40 cores": 0.51}
    assert (convolutional["name"], convolutional["paper"]) == ("ConvNet 5x5 2/3, 26", None)
    pools = ["process pool, flipout", "process pool, independent"]
    names = ["flipout", "flipout, 1 base", "low rank 1", *pools]
    for each in document["results"]:
        assert each["pool_samples"] == 8
        assert len(each["rounds"]) == 2
        parts = [f"{pool}, {samples} samples" for pool in pools for samples in (2, 8)]
        assert set(each["rounds"][0]) == set(each["medians"]) == {*names, *parts}
        first = each["rounds"][0]
        for pool in pools:
            two, eight = (first[f"{pool}, {samples} samples"] for samples in (2, 8))
            assert first[pool] == pytest.approx(eight + (16 - 8) * (eight - two) / 6)
        for pool, name in itertools.product(pools, names[:3]):
            assert each["ratios"][f"{pool} / {name}"][0] == pytest.approx(first[pool] / first[name])
        assert_positive(each["rounds"])
    assert "~" in result.stdout
    assert "FlipES" in result.stdout


def test_update_without_process_pools(measure):
    sizes = ("--hidden-sizes", 32, "--conv-scales", 0.05, "--samples", 16, "--members-per-base", 4)
    result = measure("update", *sizes, *FAST, "--workers", 0, "--threads", 1)
    for each in result.document("update_cpu")["results"]:
        assert set(each["medians"]) == {"flipout", "flipout, 1 base", "low rank 1"}
        assert (each["pool_samples"], each["ratios"]) == (None, {})
        assert_positive(each["rounds"])
    assert "pool" not in result.stdout
    assert "FlipES" in result.stdout


def test_prices():
    config = Config(device="cpu")
    pool = Setup("pool", replace(config, backend="process_pool"), cores=4, workers=4)
    gpu = Setup("gpu", replace(config, device="cuda"), cores=4)
    assert [Prices().an_hour(each) for each in (pool, gpu)] == [None, None]
    assert [Prices(core=0.5).an_hour(each) for each in (pool, gpu)] == [2, None]
    assert [Prices(machine=3).an_hour(each) for each in (pool, gpu)] == [3, 3]
    assert [Prices(core=0.5, machine=3).an_hour(each) for each in (pool, gpu)] == [2, 3]
    rates = {"pool: env steps/s": 1e9 / 3600, "gpu: env steps/s": 2e9 / 3600}
    costs = Prices(core=0.5, machine=3).costs([pool, gpu], rates)
    assert costs == pytest.approx({"pool": 2, "gpu": 1.5})


MISTAKES = [
    ([], "the following arguments are required: BENCH"),
    (["speed"], "invalid choice: 'speed'"),
    (["env", "--rounds", "0"], "--rounds must be >= 1, got 0"),
    (["policy", "--rounds", "-1"], "--rounds must be >= 1, got -1"),
    (["env", "--seconds", "0"], "--seconds must be > 0, got 0"),
    (["env", "--seconds", "inf"], "--seconds must be > 0, got inf"),
    (["env", "--seed", "-1"], "--seed must be >= 0, got -1"),
    (["env", "--threads", "0"], "--threads must be >= 1, got 0"),
    (["env", "--slots", "many"], "invalid int value: 'many'"),
    (["env", "--slots", "0"], "env.num_envs must be > 0, got 0"),
    (["env", "--env", "Humanod-v5"], "unknown environment 'Humanod-v5'"),
    (["env", "--env", "CartPole-v1"], "CartPole-v1 is no native task"),
    (["env", "--env-kwargs", "[1]"], "--env-kwargs must be keys and values, got '[1]'"),
    (["env", "--env-kwargs", "{"], "--env-kwargs is not valid YAML"),
    (["env", "--env-kwargs", "{color: red}"], "no keyword argument 'color'"),
    (["env", "--out", "file"], "--out: cannot make the folder file"),
    (["policy", "--population-size", "20"], "--population-size must be a multiple of 16"),
    (["policy", "--width", "0"], "--width must be > 0, got 0"),
    (["policy", "--model", "gru", "--depth", "2"], "--depth cannot be chosen for --model gru"),
    (["policy", "--model", "lstm"], "invalid choice: 'lstm'"),
    (["policy", "--device", "abacus"], "device 'abacus' is not available"),
    (["throughput", "--workers", "2", "0"], "--workers must be >= 1, got 0"),
    (["throughput", "--warp-slots", "8", "0"], "--warp-slots must be >= 1, got 0"),
    (["throughput", "--warp-members-a-slot", "0"], "--warp-members-a-slot must be >= 1, got 0"),
    (["throughput", "--warp-slots", "8"], "device 'cuda' is not available"),
    (
        ["throughput", "--quick", "--env", "CartPole-v1", "--warp-slots", "8", "--warp-device", "cpu"],
        "engine 'warp' runs native tasks, and CartPole-v1 is none",
    ),
    (["throughput", "--price-per-core-hour", "0"], "--price-per-core-hour must be > 0, got 0.0"),
    (["throughput", "--env", "Humanod-v5"], "unknown environment 'Humanod-v5'"),
    (["throughput", "--population-size", "3"], "es.population_size must be even"),
    (["update", "--samples", "100"], "--samples must be a multiple of --members-per-base 40, got 100"),
    (["update", "--members-per-base", "25"], "--members-per-base must be even (antithetic pairs"),
    (["update", "--hidden-sizes", "--conv-scales"], "there is no network to measure"),
    (["update", "--hidden-sizes", "32", "0"], "--hidden-sizes must be > 0 and finite, got 0"),
    (["update", "--pool-samples", "0"], "--pool-samples must be > 0 and finite, got 0"),
    (["update", "--device", "abacus"], "device 'abacus' is not available"),
    (["policy", "--max-gib", "0"], "--max-gib must be > 0 and finite, got 0"),
    (["policy", "--max-gib", "inf"], "--max-gib must be > 0 and finite, got inf"),
    (["update", "--conv-scales", "inf"], "--conv-scales must be > 0 and finite, got inf"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(run, arguments, message):
    Path("file").write_text("")
    result = run(*arguments)
    assert result.status == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_terminal_gets_a_progress_bar_that_is_no_part_of_the_result(tmp_path):
    program = "import sys; from es_flipout.cli.bench import main; sys.exit(main())"
    sizes = ["--population-size", "16", "--width", "8", "--depth", "1"]
    command = [sys.executable, "-c", program, "policy", *sizes, *FAST, "--threads", "1"]
    script = ["script", "-qec", f"{shlex.join(command)} >{tmp_path}/stdout", "/dev/null"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout
    assert "es-bench policy, mlp, P 16, width 8, depth 1: " in result.stdout
    assert "\x1b[" in result.stdout
    printed = (tmp_path / "stdout").read_text()
    assert "forward, ms" in printed
    assert "\x1b[" not in printed


@pytest.mark.parametrize("name", bench.BENCHES)
def test_quick_changes_defaults_and_no_more(name):
    quick = bench._parse([name, "--quick"])
    given = bench._parse([name, "--quick", "--seconds", "7"])
    assert (given.seconds, vars(given)) == (7, {**vars(quick), "seconds": 7})
    assert quick.seconds < bench._parse([name]).seconds
