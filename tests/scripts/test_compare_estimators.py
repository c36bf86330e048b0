"""The comparison of estimators: its theory by hand, its statistics on known samples, and a quick run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from es_flipout import Flipout, Independent, LowRank
from es_flipout.perturbations import Perturbation
from scripts import compare_estimators
from scripts.compare_estimators import (
    estimates,
    linear_problem,
    network_problem,
    predicted_error,
    smoothed_gradient,
    statistics,
)

MATRIX = {"weight": torch.randn(5, 6, generator=torch.Generator().manual_seed(0))}  # d = 30
KERNEL = {"weight": torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))}  # d = 54, T = 9


@pytest.mark.parametrize(
    ("perturbation", "gradient", "expected"),
    [
        (Independent(), MATRIX, 31 / 16),
        (Flipout(), MATRIX, 29 / 16),
        (Flipout(4), MATRIX, 29 / 16),
        (Flipout(base="gaussian"), MATRIX, 31 / 16 + 2 * 15 / 16),
        (Flipout(4, "gaussian"), MATRIX, 31 / 16 + 2 * 3 / 16),
        (LowRank(1), MATRIX, (7 * 8 - 1) / 16),  # (J + 2)(I + 2) - 1
        (LowRank(4), MATRIX, (30 + 1 + 2 * 12 / 4) / 16),
        (Flipout(), KERNEL, 53 / 16 + 8 * 15 / 16),
        (Flipout(4), KERNEL, 53 / 16 + 8 * 3 / 16),
    ],
    ids=str,
)
def test_theory_by_hand(perturbation: Perturbation, gradient: dict, expected: float) -> None:
    assert predicted_error(perturbation, gradient, 16) == pytest.approx(expected)


def test_theory_of_two_parameters_weighs_them_by_their_share_of_the_gradient() -> None:
    # d = 4 + 5, |G|² = 4 x 1² + 5 x 2² = 24; the noise of a vector is always independent (excess 2).
    gradient = {"weight": torch.ones(2, 2), "bias": torch.full((5,), 2.0)}
    assert predicted_error(Flipout(), gradient, 10) == pytest.approx((9 - 1 + 2 * 20 / 24) / 10)
    rank_1 = 2 + 2 * (2 + 2 + 1)
    expected = (9 - 1 + rank_1 * 4 / 24 + 2 * 20 / 24) / 10
    assert predicted_error(LowRank(1), gradient, 10) == pytest.approx(expected)


def test_a_baseline_costs_its_square_without_mirror_images() -> None:
    # (c / sigma)² d / |G|² = 3² x 4 / 4
    gradient = {"weight": torch.ones(2, 2)}
    plain, shifted = (predicted_error(Flipout(), gradient, 10, offset) for offset in (0.0, 3.0))
    assert shifted - plain == pytest.approx(9 / 10)


@pytest.mark.parametrize("perturbation", [Flipout(), Flipout(4), LowRank(1)], ids=str)
def test_theory_of_a_kernel_is_what_is_measured(perturbation: Perturbation) -> None:
    torch.manual_seed(0)
    problem = linear_problem(torch.nn.Conv2d(2, 3, 2, bias=False))
    results = estimates(problem, perturbation, 32, 1.0, antithetic=True, repetitions=250, seed=0, setting=0)
    found = statistics(results, problem.target)
    expected = predicted_error(perturbation, problem.gradient, 16)
    assert found["error"] == pytest.approx(expected, abs=4 * found["error_se"])
    assert found["error_se"] < 0.1 * expected


def test_little_smoothing_leaves_the_gradient_and_much_does_not() -> None:
    torch.manual_seed(0)
    problem, inputs, outputs = network_problem(4)
    little, error = smoothed_gradient(problem, inputs, outputs, 1e-4, 100, seed=0)
    assert float((little - problem.target).norm() / problem.target.norm()) < 1e-2
    assert error < 1e-2
    much, _ = smoothed_gradient(problem, inputs, outputs, 1.0, 100, seed=0)
    assert float(much.norm()) < 0.5 * float(problem.target.norm())


def test_statistics_of_a_known_sample() -> None:
    # Estimates G + b + noise in 20 dimensions: |G|² = 20, |b|² = 5, variance 0.3² x 20 = 1.8.
    generator = torch.Generator().manual_seed(1)
    target = torch.ones(20, dtype=torch.float64)
    bias = torch.full((20,), 0.5, dtype=torch.float64)
    noise = 0.3 * torch.randn(4000, 20, generator=generator, dtype=torch.float64)
    found = statistics(target + bias + noise, target)
    for name, expected in (("error", 6.8 / 20), ("variance", 1.8 / 20), ("squared_bias", 5 / 20)):
        assert found[name] == pytest.approx(expected, abs=5 * found[f"{name}_se"])
        assert found[f"{name}_se"] < 0.01
    assert 0.97 < found["cosine"] < 1


def test_few_estimates_without_bias_show_none() -> None:
    # The mean of 20 is off by 500 / 20 = 25 |G|², all of it chance.
    noise = torch.randn(20, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = torch.zeros(500, dtype=torch.float64)
    target[0] = 1.0
    found = statistics(target + noise, target)
    assert abs(found["squared_bias"]) < 4 * found["squared_bias_se"] < 15
    assert found["variance"] == pytest.approx(500, abs=5 * found["variance_se"])


@pytest.mark.slow
def test_a_quick_run_measures_what_theory_says() -> None:
    assert compare_estimators.main(["--quick", "--out", "result.json", "--plot", "figure.png"]) == 0
    rows = [
        row for row in json.loads(Path("result.json").read_text())["rows"] if row["part"] == "linear layer"
    ]
    assert {row["family"] for row in rows} == set(compare_estimators.FAMILIES)
    for row in rows:
        assert row["error"] == pytest.approx(row["theory"], abs=5 * row["error_se"]), row
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_estimators.main(["--out", "no/folder/file.json"]) == 2
    error = capsys.readouterr().err
    assert "no/folder" in error
    assert error.count("\n") == 1
