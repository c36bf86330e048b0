"""Variances of gradients are estimated as they should be, and theorem 2 is recovered from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.paper import variance
from benchmarks.paper.decomposition import (
    ALPHA,
    BETA,
    GAMMA,
    VARIANCE,
    draw,
    fitted,
    interval,
    slope_table,
    slopes,
    term_table,
)
from benchmarks.paper.frozen import Network, loss_of
from benchmarks.paper.lstm_loop import LSTMLoop
from benchmarks.paper.variance import ESTIMATORS, Meter, batch_gradients, sizes_of
from benchmarks.plots import SOURCE, fingerprint
from es_flipout.cli.results import Results


def network(examples: int, seed: int = 0) -> Network:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator)
    y = torch.randint(3, (examples,), generator=generator)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return Network(module, x, y, {"first": "0.weight", "last": "2.weight"})


def test_every_mini_batch_has_its_own_gradient():
    ours = network(examples=40)
    noisy = ours.perturbed("flipout").eval()
    x, y = ours.x.view(4, 10, 6), ours.y.view(4, 10)
    weights = dict(noisy.named_parameters())
    found = batch_gradients(noisy, weights, x, y)
    for index in range(4):
        expected = torch.autograd.grad(loss_of(ours.module(x[index]), y[index]), [*weights.values()])
        for one, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(one[index], other)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mini_batches_that_are_computed_together_have_draws_of_their_own(estimator):
    ours = network(examples=1)
    noisy = ours.perturbed(estimator).train()
    gradients = batch_gradients(noisy, dict(noisy.named_parameters()), *ours.draw(20, 1))
    assert all(len(torch.unique(each.detach(), dim=0)) == 20 for each in gradients.values())


@pytest.mark.parametrize(("at_once", "fits"), [(1, 1), (24, 4), (1000, 8)])
def test_the_variance_is_that_of_each_weight_over_repeats(at_once, fits):
    ours = network(examples=30)
    words = f"--repeats 8 --examples-at-once {at_once} --batches-at-once 8"
    meter = Meter(ours, "flipout", 6, variance.parse(words.split()))
    torch.manual_seed(3)
    found = meter()
    torch.manual_seed(3)
    noisy = ours.perturbed("flipout").train()
    weights = dict(noisy.named_parameters())
    parts = [batch_gradients(noisy, weights, *ours.draw(fits, 6)) for _ in range(8 // fits)]
    for label, name in ours.layers.items():
        key = next(key for key, each in weights.items() if each is ours.module.get_parameter(name))
        gradients = torch.cat([part[key] for part in parts]).detach().double()
        assert found[label] == pytest.approx(float(gradients.var(dim=0).mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "ratio"), [("shared", 1.0), ("independent", 1 / 16), ("local", 1 / 16), ("flipout", None)]
)
def test_theorem_2_where_all_examples_are_the_same(estimator, ratio):
    # Then the covariance under a shared draw is the variance of one example: β + γ = α.
    options = variance.parse(["--repeats", "3000", "--batches-at-once", "100"])
    torch.manual_seed(0)
    ours = network(examples=1)
    one, many = (Meter(ours, estimator, size, options)() for size in (1, 16))
    for layer in ours.layers:
        found = many[layer] / one[layer]
        if ratio is None:  # β: a small network has some
            assert 1 / 16 < found < 0.8
        else:
            assert found == pytest.approx(ratio, rel=0.2)


def test_alpha_beta_and_gamma_are_found_again():
    sizes = 2.0 ** np.arange(8)
    generator = np.random.default_rng(0)
    noise = generator.lognormal(0, 0.01, (3, 40, 8))
    alpha, beta, gamma = 2.0, 0.01, 0.3
    others = (sizes - 1) / sizes
    measured = {
        "shared": (sizes, noise[0] * (alpha / sizes + others * (beta + gamma))),
        "flipout": (sizes, noise[1] * (alpha / sizes + others * beta)),
        "independent": (sizes[:4], noise[2, :, :4] * alpha / sizes[:4]),
    }
    terms, error = fitted(measured)
    assert error < 0.01
    for name, expected in ((ALPHA, alpha), (BETA, beta), (GAMMA, gamma)):
        middle, low, high = interval(terms[name])
        assert low < expected < high
        assert middle == pytest.approx(expected, rel=0.02)


def test_a_slope_is_that_of_the_logarithms_and_an_interval_holds_90_percent():
    sizes = np.array([1.0, 2.0, 4.0])
    assert slopes(sizes, np.array([[8.0, 4.0, 2.0], [3.0, 3.0, 3.0]])) == pytest.approx([-1.0, 0.0])
    assert interval(np.arange(101)) == pytest.approx((50, 5, 95))


def test_tables_have_intervals_where_there_are_several_runs():
    results = Results({})
    for index in range(2):
        for size in (1, 2, 512):
            case = {"layer": "a layer", "size": size}
            results.add(index, "flipout", {VARIANCE: 4.0 / size + (size - 1) / size * 0.5}, **case)
    *_, terms = term_table(results).splitlines()
    assert terms.startswith("| a layer | 4.00 | 1.2e-01 (1.2e-01 to 1.2e-01) |")
    assert terms.endswith("| 8.00 | 0% |")
    whole, few = (
        slopes(np.array(n), np.array([v]))[0]
        for n, v in (([1.0, 2.0, 512.0], [4.0, 2.25, 4 / 512 + 511 / 1024]), ([1.0, 2.0], [4.0, 2.25]))
    )
    both = [f"{value:.3f} ({value:.3f} to {value:.3f})" for value in (whole, few)]
    assert slope_table(results).splitlines()[-1] == f"| a layer | 2 | {both[0]} | {both[1]} |"
    one = slope_table(results.where(round=0)).splitlines()[-1]
    assert one == f"| a layer | 1 | {whole:.3f} | {few:.3f} |"


def test_sizes_are_powers_of_two():
    options = variance.parse(["--largest", "9", "--independent-up-to", "4"])
    assert sizes_of("flipout", options) == [1, 2, 4, 8]
    assert sizes_of("independent", options) == [1, 2, 4]


def test_the_loop_over_time_steps_is_an_lstm():
    torch.manual_seed(0)
    theirs, ours = nn.LSTM(3, 4, batch_first=True), LSTMLoop(3, 4)
    state = {name.removesuffix("_l0"): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x)[0])


def run(tmp_path, words: str) -> Results:
    path = tmp_path / "variance.json"
    command = f"--quick --runs 2 --repeats 10 --largest 16 {words} --threads 1 --json {path}"
    assert variance.main([*command.split(), "--plot", str(tmp_path / "variance.png")]) == 0
    return Results.read(path)


def test_the_program_measures_every_estimator(tmp_path, capsys):
    results = run(tmp_path, "--networks fc --max-steps 5")
    assert "| FC first layer |" in capsys.readouterr().out
    assert results.column("contestant") == list(ESTIMATORS)
    assert results.where(contestant="flipout").column("size") == [1, 2, 4, 8, 16]
    assert results.column("round") == [0, 1]
    assert results.settings["complete"]
    assert results.settings["networks"]["fc"]["training steps"] == 5
    with Image.open(tmp_path / "variance.png") as image:
        assert image.text[SOURCE] == fingerprint(results.rows)


def test_it_stops_when_the_time_is_over(tmp_path):
    results = run(tmp_path, "--networks fc --max-steps 5 --estimators flipout --seconds 1e-3")
    assert results.column("round") == [0]
    assert not results.settings["complete"]


@pytest.mark.slow
def test_convolutions_and_lstms_are_measured(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text("a text of few words\n" * 20)
    results = run(tmp_path, f"--networks conv lstm --max-steps 5 --text {tmp_path}")
    layers = ["ConvNet first layer", "ConvNet last layer", "LSTM hidden-to-hidden"]
    assert results.column("layer") == layers
    assert results.column("contestant") == ["shared", "flipout", "independent"]


def test_a_picture_has_intervals_of_90_percent(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("benchmarks.plots.draw", lambda path, rows, *_, **__: drawn.extend(rows))
    results = Results({})
    for index in range(101):
        results.add(index, "flipout", {VARIANCE: float(index)}, layer="a layer", size=2)
    draw(tmp_path / "a.png", results)
    assert [row["value"] for row in drawn] == pytest.approx([50, 5, 95])
