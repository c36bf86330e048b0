"""Configuration: range checks, schedules, budgets, and the shipped files."""

from __future__ import annotations

from pathlib import Path

import pytest

from es_flipout.cli.arguments import load_config
from es_flipout.config import (
    Config,
    EnvConfig,
    ESConfig,
    EvaluationConfig,
    OptimizerConfig,
    PolicyConfig,
    ScheduleConfig,
    find_config,
    shipped_config_dir,
)
from es_flipout.trainer import Trainer

SHIPPED = sorted(path.name for path in shipped_config_dir().glob("*.yaml"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ESConfig(sigma=-0.1), "es.sigma must be > 0, got -0.1"),
        (lambda: ESConfig(sigma=float("nan")), "es.sigma"),
        (lambda: ESConfig(population_size=7), "must be even when es.mirrored is true, got 7"),
        (lambda: ESConfig(population_size=10, num_bases=4), r"divisible by 2 x es.num_bases = 8.*got 10"),
        (lambda: ESConfig(population_size=9, num_bases=4, mirrored=False), "divisible by es.num_bases = 4"),
        (lambda: ESConfig(population_size=0), "population_size must be >= 2"),
        (lambda: EnvConfig(num_slots=0), "env.num_slots must be > 0"),
        (lambda: PolicyConfig(hidden_sizes=[64, 0]), "policy.hidden_sizes"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr must be > 0"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "optimizer.weight_decay must be >= 0"),
        (lambda: OptimizerConfig(kwargs={"lr": 0.1}), "must not hold lr: set optimizer.lr"),
        (lambda: OptimizerConfig(kwargs={"maximize": True}), "must not hold maximize: fitness is always"),
        (lambda: EvaluationConfig(interval=-1), "evaluation.interval must be >= 0"),
        (lambda: Config(seed=-1), "seed must be >= 0"),
        (lambda: Config(threads=0), "threads must be > 0"),
        (lambda: Config(es=ESConfig(sigma_schedule=ScheduleConfig("linear"))), "a schedule needs a budget"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_independent_noise_needs_no_bases():
    assert ESConfig(population_size=10, num_bases=4, perturbation="independent").population_size == 10


@pytest.mark.parametrize(
    ("kind", "halfway"),
    # From 2 to 0.5: the arithmetic mean, the cosine's midpoint (the same), the geometric mean.
    [("constant", 2.0), ("linear", 1.25), ("cosine", 1.25), ("exponential", 1.0)],
)
def test_a_schedule_goes_from_its_start_to_its_final_fraction(kind, halfway):
    schedule = ScheduleConfig(kind, final_fraction=0.25)
    assert schedule.value(2.0, 0.0) == pytest.approx(2.0)
    assert schedule.value(2.0, 0.5) == pytest.approx(halfway)
    end = 2.0 if kind == "constant" else 0.5
    assert schedule.value(2.0, 1.0) == schedule.value(2.0, 1.7) == pytest.approx(end)


def test_progress_is_the_budget_that_is_used_up_most():
    assert Config().progress(1000, 10**9) == 0.0
    assert Config(generations=10).progress(4, 10**9) == 0.4
    assert Config(generations=10, max_env_steps=1000).progress(4, 700) == 0.7
    assert Config(max_env_steps=1000).progress(4, 1300) == 1.0


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_builds_a_trainer(name):
    config = load_config(find_config(name))
    trainer = Trainer(config)
    try:
        assert trainer.es.population_size == config.es.population_size
        assert not trainer.finished
    finally:
        trainer.close()


def test_a_configuration_is_found_by_path_before_name_and_with_or_without_suffix():
    shipped = find_config("humanoid.yaml")
    assert shipped == find_config("humanoid") == shipped_config_dir() / "humanoid.yaml"
    Path("humanoid.yaml").write_text("seed: 3\n")
    assert find_config("humanoid.yaml") == Path("humanoid.yaml")


def test_a_missing_configuration_is_named_beside_the_shipped_ones():
    with pytest.raises(ValueError, match=r"'nope.yaml' does not exist.*humanoid.yaml"):
        find_config("nope.yaml")
