"""Other libraries' flipout layers: the check itself, es_flipout, and whichever library is installed."""

import importlib
import json

import numpy as np
import pytest

from benchmarks.paper.peers import check, contestants, steps, weights
from es_flipout.cli.results import Results

CASES = check.cases(0)
DRAWS = 300


def by_hand(case, noise):
    """Returns a layer whose weights are W̄ + SIGMA noise(x) at every position, made from its features."""

    def forward(x):
        phi, _ = case.linear(x, np.zeros((len(x), 1, 1)))
        return phi @ case.mean + check.SIGMA * np.einsum("npi,npij->npj", phi, noise(phi))

    return forward


def test_one_draw_for_every_example_leaves_nothing_unexplained():
    case, rng = CASES["linear"], np.random.default_rng(0)
    one = by_hand(case, lambda phi: rng.standard_normal((len(phi), 1, phi.shape[2], 4)).repeat(24, axis=1))
    features, outputs = case.linear(case.inputs, one(case.inputs))
    assert check.residual(features, outputs, case.mean) < 1e-14
    found = check.distribution(case, one, draws=1000)
    assert found["mean"] == pytest.approx(1, abs=0.05)
    assert found["std"] == pytest.approx(1, abs=0.05)
    assert abs(found["correlation"]) < 0.05


def test_a_draw_for_every_position_is_found_out():
    case, rng = CASES["linear"], np.random.default_rng(0)
    each = by_hand(case, lambda phi: rng.standard_normal((*phi.shape, 4)))
    features, outputs = case.linear(case.inputs, each(case.inputs))
    expected = (1 - check.INPUTS / check.POSITIONS) ** 0.5
    assert check.residual(features, outputs, case.mean) == pytest.approx(expected, abs=0.05)


def test_a_draw_for_the_whole_batch_is_found_out():
    case, rng = CASES["linear"], np.random.default_rng(0)

    def forward(x):
        return x @ (2 * case.mean + 0.1 * rng.standard_normal(case.mean.shape))

    found = check.distribution(case, forward, draws=1000)
    assert found["mean"] == pytest.approx(2, abs=0.1)
    assert found["std"] == pytest.approx(0.1 / check.SIGMA, abs=0.2)
    assert found["correlation"] == pytest.approx(1)


@pytest.mark.parametrize("layer", CASES)
def test_ours_are_weight_perturbations_of_the_declared_distribution(layer):
    library = importlib.import_module("benchmarks.paper.peers.with_ours")
    library.set_seed(0)
    found = check.figures(library.LAYERS[layer], CASES[layer], DRAWS)
    assert found["residual"] < 1e-13
    assert found["mean"] == pytest.approx(1, abs=0.05)
    assert found["std"] == pytest.approx(1, abs=0.1)
    assert abs(found["correlation"]) < 0.05


EXPLAINED = {"with_tfp": ["conv"], "with_blitz": [], "with_bayesian_torch": []}
"""Layers whose outputs one weight tensor per example explains, in the versions of the README."""


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("with_bayesian_torch", "bayesian_torch"),
        ("with_blitz", "blitz"),
        ("with_tfp", "tensorflow_probability"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the libraries themselves
def test_other_libraries_where_they_are_installed(module, package):
    pytest.importorskip(package)
    library = importlib.import_module(f"benchmarks.paper.peers.{module}")
    library.set_seed(0)
    explained = []
    for name, make in library.LAYERS.items():
        case = CASES[name]
        outputs = case.linear(case.inputs, make(**case.weights)(case.inputs))
        if check.residual(*outputs, case.mean) < 1e-10:
            explained.append(name)
    assert explained == EXPLAINED[module]


@pytest.mark.slow
def test_both_programs_run_with_es_flipout_alone(tmp_path, capsys):
    for program, words in ((weights, []), (steps, ["--networks", "fc"])):
        path = tmp_path / "results.json"
        assert program.main(["--quick", *words, "--environments", str(tmp_path), "--json", str(path)]) == 0
        results = Results.read(path)
        assert results.column("contestant") == ["ours"]
        assert "--environments PEERS" in results.settings["command"]
        assert set(results.settings["versions"]["ours"]) == {"es-flipout", "torch"}
        assert "blitz: no environment 'blitz', left out" in capsys.readouterr().err
        assert json.loads(path.read_text())["machine"]["torch"]


def test_a_process_that_ends_is_heard_of(tmp_path):
    some = {"ours": contestants.Contestant("no_such_module", None)}
    with contestants.running(some, None, threads=1) as processes, pytest.raises(RuntimeError, match="ours"):
        processes["ours"].ask("versions")


def test_tables():
    results = Results({"networks": {"fc": "MLP"}})
    for index, (ours, blitz, tfp) in enumerate([(0.1, 0.3, 0.2), (0.1, 0.3, 0.1)]):
        times = {"ours": ours, "blitz": blitz, "TFP": tfp}
        for name, seconds in times.items():
            results.add(index, name, {steps.STEP: seconds}, network="fc", batch=1024, threads=2)
    results.add(0, "ours", {steps.STEP: 1.0}, network="fc", batch=128, threads=1)
    lines = steps.table(results).splitlines()[2:]
    assert lines == [
        "| MLP, batch 1,024, 2 threads | 100.0 | 300.0 | 150.0 | 1.50 (1.00 to 2.00), TFP |",
        "| MLP, batch 128, 1 thread | 1,000.0 | - | - | - |",
    ]
    checked = Results({})
    for seed, residual in enumerate([1e-15, 3e-15, 0.9]):
        figures = {"residual": residual, "mean": 1.0, "std": 2.0, "correlation": 0.01}
        checked.add(seed, "TFP", figures, layer="conv")
    rows = [line.split(" | ") for line in weights.table(checked).splitlines()[2:]]
    assert rows[2] == ["| TFP", "convolution", "3e-15", "1.00", "2.00", "0.01 |"]
    assert rows[3][2:] == ["-", "-", "-", "- |"]
