"""Large batches: what is trained, how it is judged, and the factors that follow from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.paper import large_batches
from benchmarks.paper.image_training import Task, Training
from benchmarks.paper.images import Images
from benchmarks.paper.large_batches import QUICK, Case
from benchmarks.paper.large_batches_tables import final_loss, first_at, lead, leads, tables, tuning_table
from benchmarks.paper.models import fully_connected
from es_flipout.cli.results import Results
from es_flipout.stochastic import LearnedGaussian, MultiplicativeGaussian


def small_task(noise=None) -> Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 4, 4, generator=generator), torch.arange(40) % 10
    images = Images(x, y, x[:7], y[:7])
    noise = noise or LearnedGaussian(0.1)
    make = partial(fully_connected, 16, (8,))
    return Task(make, noise, 2.0, images, 16, interval=2, judged=30, draws=3, is_recorded=False)


def measured(*words: str, status: int = 0) -> Results:
    file = Path("results.json")
    assert large_batches.main([*words, "--quick", "--threads", "1", "--json", str(file)]) == status
    return Results.read(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["--models", "fc", "--noises", "bbb", "--lrs", "0.03", "0.1"], None),
        (["--models", "conv", "--noises", "multiplicative", "--lrs", "0.01", "--seeds", "4"], 2),
    ],
)
def test_the_program_measures_factors(words, runs, capsys):
    results = measured(*words)
    settings = results.settings
    assert (settings["complete"], settings["paper_sizes"], settings["training_images"]) == (True, False, 1438)
    assert settings["command"].startswith("python -m benchmarks.paper.large_batches --models")
    assert settings["machine"]["torch"] == torch.__version__
    assert runs in (None, len(results.rows))
    for run in results.rows:
        steps = QUICK["iterations"] if run["tuned_for"] else QUICK["tuning_iterations"]
        assert run["iteration"] == list(range(0, steps + 1, QUICK["interval"]))
        assert all(math.isfinite(value) for value in run["objective"])
    trained = [run for run in results.rows if run["tuned_for"]]
    assert {run["estimator"] for run in trained} == {"shared", "flipout"}
    for run in trained:  # both begin with the same weights, and are judged by the same draws
        twin = next(other for other in trained if other["seed"] == run["seed"])
        assert run["cross_entropy"][0] == twin["cross_entropy"][0]
    assert capsys.readouterr().out == tables(results) + "\n"


def test_a_program_out_of_time_says_that_it_is_incomplete(capsys):
    results = measured("--models", "fc", "--seconds", "0.000001")
    assert not results.settings["complete"]
    assert not results.rows
    assert json.loads(Path("results.json").read_text())["seconds"] == 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-set", "mnist"], "give --data"),
        (["--estimators", "flipout"], "must include shared"),
        (["--interval", "3"], "at most a quarter"),
        (["--estimators", "shared", "local"], "it has no convolutions"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    assert large_batches.main([*words, "--quick", "--threads", "1"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@torch.no_grad()
def test_all_estimators_are_judged_by_the_mean_loss_of_examples_with_weights_of_their_own():
    task = small_task()
    shared, flipout = (Training(task, name, lr=0.1, seed=5) for name in ("shared", "flipout"))
    objective, cross_entropy = shared.expected_loss()
    assert (objective, cross_entropy) == flipout.expected_loss()
    model, losses = fully_connected(16, (8,)), []
    x, y = task.images.train_x[:30], task.images.train_y[:30]
    for seed in range(3):
        weights = flipout._noisy.weights(30, seed)  # of every example
        rest = {k: v for k, v in flipout._noisy.module.state_dict().items() if k not in weights}
        for index in range(30):
            own = rest | {name: each[index] for name, each in weights.items()}
            logits = torch.func.functional_call(model, own, x[index : index + 1])
            losses.append(F.cross_entropy(logits, y[index : index + 1]))
    assert cross_entropy == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    # log(s / sigma) + (sigma² + mu²) / (2 s²) - 1/2 with sigma = 0.1 and s = 2, over 40 images
    mu = torch.cat(
        [each.flatten() for name, each in flipout._noisy.module.named_parameters() if "weight" in name]
    )
    divergence = (math.log(20) + (0.01 + mu.square()) / 8 - 0.5).sum() / 40
    assert objective - cross_entropy == pytest.approx(float(divergence), rel=1e-4)


@pytest.mark.parametrize("estimator", ["shared", "flipout", "independent", "local"])
@pytest.mark.parametrize("noise", [LearnedGaussian(0.1), MultiplicativeGaussian(0.5)], ids=type)
def test_training_lowers_the_expected_loss(noise, estimator):
    curve = Training(small_task(noise), estimator, lr=0.03, seed=0).run(30, math.inf)
    assert curve.complete
    assert curve.objective[-1] < 0.99 * curve.objective[0]
    assert curve.seconds == sorted(curve.seconds)
    learned = isinstance(noise, LearnedGaussian)
    assert all((a > b) == learned for a, b in zip(curve.objective, curve.cross_entropy, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("noise", [LearnedGaussian(0.1), MultiplicativeGaussian(0.5)], ids=type)
def test_a_step_on_a_gpu_begins_with_the_same_weights_and_trains(noise, is_recorded):
    task = small_task(noise)
    on_gpu = replace(task, images=task.images.to("cuda"), is_recorded=is_recorded)
    for estimator in ("shared", "flipout"):
        training = Training(on_gpu, estimator, lr=0.03, seed=0)
        expected = Training(task, estimator, lr=0.03, seed=0)._noisy.state_dict()
        for name, value in training._noisy.state_dict().items():
            assert torch.equal(value.cpu(), expected[name])
        curve = training.run(30, math.inf)
        assert curve.objective[-1] < 0.99 * curve.objective[0]


def curve_of(estimator: str, losses: list[float], seconds: float, seed: int = 0, **facts) -> dict:
    steps = list(range(0, 10 * len(losses), 10))
    return {
        **{"model": "fc", "noise": "multiplicative", "estimator": estimator, "lr": 0.01, "seed": seed},
        **{"tuned_for": ["cross_entropy"], "complete": True, "iteration": steps, "cross_entropy": losses},
        "seconds": [seconds * step for step in steps],
        **facts,
    }


def test_a_factor_is_that_of_the_iterations_to_the_loss_that_shared_weights_reach():
    shared = curve_of("shared", [3.0, 2.0, 1.5, 1.8, 1.0], seconds=0.1)  # at 0, 10, 20, 30, 40
    flipout = curve_of("flipout", [3.0, 1.4, 1.2, 0.9, 0.5], seconds=0.2)
    half, whole = (lead(shared, flipout, "cross_entropy", fraction) for fraction in (0.5, 1.0))
    assert (half.threshold, half.shared, half.other) == (1.5, 20, 10)
    assert (whole.threshold, whole.shared, whole.other) == (1.0, 40, 30)
    assert (half.factor, half.slowdown) == (2, pytest.approx(2))
    assert lead(flipout, shared, "cross_entropy", 1.0).other is None
    assert (
        first_at(curve_of("shared", [0.5, 2.0], 1.0), "cross_entropy", 1.0) is None
    )  # the start does not count


def test_a_table_has_the_median_and_the_range_over_seeds_of_complete_runs():
    rows = []
    for seed, faster in enumerate((1, 2, 4)):
        rows.append(curve_of("shared", [3.0, 2.5, 2.0, 1.5, 1.0], 0.1, seed))
        rows.append(
            curve_of(
                "flipout", [3.0, *([2.9] * (4 // faster - 1)), 0.5, *([0.5] * (4 - 4 // faster))], 0.2, seed
            )
        )
    rows.append(curve_of("flipout", [3.0, 3.0, 3.0, 3.0, 3.0], 0.2, seed=0, tuned_for=[]))
    results = Results({"batch_size": 4096}, rows)
    assert [each.factor for each in leads(results, "flipout", "cross_entropy", 1.0)] == [1, 2, 4]
    *_, last, published = tables(results).splitlines()
    assert last.split(" | ")[3:] == ["100%", "40", "1.00", "2.00 (1.00 to 4.00)", "1.00 (0.50 to 2.00) |"]
    assert last.startswith("| fc, multiplicative, 4,096 | flipout (0.01, shared 0.01) | cross entropy")
    assert "published" in published
    assert "about 3" in published
    rows[1]["complete"] = False
    assert [each.factor for each in leads(results, "flipout", "cross_entropy", 1.0)] == [2, 4]
    rows[3]["cross_entropy"] = [3.0] * 5
    assert "not reached by 1 of 2" in tables(results)


def test_runs_that_tuned_the_rate_are_compared_at_the_best_one():
    rows = [
        curve_of("shared", [3.0, 2.0, 1.5, 1.0, 1.1], 0.1, lr=0.1, tuned_for=[]),
        curve_of("shared", [3.0, 2.0, 2.0, 2.0, 2.0], 0.1, lr=0.2, tuned_for=[]),
        curve_of("flipout", [3.0, 1.0, 0.9, 0.8, 0.7], 0.1, lr=0.4, tuned_for=[]),
        curve_of("flipout", [3.0, 0.1, 0.1, 0.1, 0.1], 0.1, lr=0.5, tuned_for=[], complete=False),
        curve_of("flipout", [3.0, 0.1, 0.1, 0.1, 0.1], 0.1),
    ]
    *_, row = tuning_table(Results({"batch_size": 4096}, rows)).splitlines()
    assert row == ("| fc, multiplicative, 4,096 | 40 | 0.1: 1.00 | 30 | flipout 0.4: 0.700 | 10 | 3.00 |")


def test_the_grid_of_learning_rates_grows_at_its_edge(monkeypatch):
    def train(task, estimator, lr, seed, iterations, deadline):
        # objective: best at 1; cross entropy: best at 0.1, in the grid
        losses = {"objective": abs(math.log(lr)), "cross_entropy": abs(math.log(lr / 0.1))}
        row = {"estimator": estimator, "lr": lr, "iteration": [0, 1], "seconds": [0, 1], "complete": True}
        return row | {name: [9.0, value] for name, value in losses.items()}

    monkeypatch.setattr(large_batches, "train", train)
    options = large_batches._parse(["--quick", "--lrs", "0.03", "0.1", "0.3"])
    case = Case("fc", "bbb", small_task(), options, Results({}), math.inf)
    best = case._tuned("flipout")
    assert best["cross_entropy"] == 0.1
    assert best["objective"] == pytest.approx(0.9)
    assert case.results.column("lr") == pytest.approx([0.03, 0.1, 0.3, 0.9, 2.7])


def test_a_run_that_diverged_is_never_the_best():
    run = {"loss": [3.0, 2.0, 1.0, 0.5, 0.25], "complete": True}
    assert final_loss(run, "loss") == 0.375  # the last two of five
    assert final_loss({**run, "complete": False}, "loss") == math.inf
    assert final_loss({**run, "loss": [1.0, math.nan]}, "loss") == math.inf
