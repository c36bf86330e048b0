"""The comparison on plain functions of a vector."""

import numpy as np
import pytest

from benchmarks import vectors


@pytest.mark.parametrize(
    "function", [vectors.sphere, vectors.ellipsoid, vectors.rosenbrock, vectors.rastrigin]
)
def test_functions_are_zero_at_their_minimum_alone(function: vectors.Function) -> None:
    minimum = np.full(5, 1.0 if function is vectors.rosenbrock else 0.0)
    assert function(minimum) == pytest.approx(0)
    assert (function(minimum + np.random.default_rng(0).normal(size=(9, 5))) > 0.01).all()


def test_both_methods_at_hand_come_near_the_minimum() -> None:
    methods = ["FlipoutES", "differential evolution"]
    (row,) = vectors.compare([vectors.sphere], [3], 10_000, methods, range(1))
    assert row["FlipoutES"][0] < 1e-3
    assert row["differential evolution"][0] < 1e-3


def test_only_as_many_evaluations_as_are_asked_for() -> None:
    count = 0

    def counted(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += int(np.prod(x.shape[:-1]))
        return vectors.sphere(x)

    vectors.by_flipout_es(counted, np.ones(3), 1_000, seed=0)
    assert count == 1_000
    count = 0
    vectors.by_differential_evolution(counted, np.ones(3), 900, seed=0)
    assert 800 <= count <= 900
