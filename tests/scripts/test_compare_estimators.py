"""The comparison of estimators: its theory by hand, its statistics on known samples, and a quick run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from es_flipout import Flipout, Independent, LowRank
from es_flipout.perturbations import Perturbation
from scripts import compare_estimators
from scripts.compare_estimators import predicted_error, statistics

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
        (Flipout(), KERNEL, 53 / 16 + 8 * 15 / 16),
        (Flipout(4), KERNEL, 53 / 16 + 8 * 3 / 16),
    ],
    ids=str,
)
def test_theory_by_hand(perturbation: Perturbation, gradient: dict, expected: float) -> None:
    assert predicted_error(perturbation, gradient, 16) == pytest.approx(expected)


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
    assert "no/folder" in capsys.readouterr().err
