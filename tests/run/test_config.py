"""Configuration: range checks, schedules, budgets, and the shipped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from es_flipout.choices import SigmaRule
from es_flipout.cli.arguments import load_config
from es_flipout.cli.shipped import find_config, shipped_config_dir
from es_flipout.envs.gymnasium_ids import NATIVE_IDS
from es_flipout.run.config import (
    Config,
    EnvConfig,
    EpisodeLimitConfig,
    ESConfig,
    EvaluationConfig,
    OptimizerConfig,
    PolicyConfig,
    RolloutConfig,
    ScheduleConfig,
    SigmaAdaptationConfig,
)
from es_flipout.run.trainer import Trainer


def adapting(rule: SigmaRule = "pgpe", **settings: Any) -> ESConfig:
    return ESConfig(sigma_adaptation=SigmaAdaptationConfig(rule), **settings)


SHIPPED = sorted(path.name for path in shipped_config_dir().glob("*.yaml"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ESConfig(sigma=-0.1), "es.sigma must be > 0, got -0.1"),
        (lambda: ESConfig(sigma=float("nan")), "es.sigma"),
        (lambda: ESConfig(population_size=7), "must be even when es.antithetic is true, got 7"),
        (lambda: ESConfig(population_size=10, num_bases=4), r"divisible by 2 x es.num_bases = 8.*got 10"),
        (lambda: ESConfig(population_size=9, num_bases=4, antithetic=False), "divisible by es.num_bases = 4"),
        (lambda: ESConfig(population_size=0), "population_size must be >= 2"),
        (lambda: EnvConfig(num_envs=0), "env.num_envs must be > 0"),
        (lambda: EnvConfig(engine="batch", wrappers=["ClipReward"]), "need a gymnasium engine, got.*batch$"),
        (lambda: EnvConfig(engine="mjdata_pool", wrappers=["ClipReward"]), "env.wrappers need a gymnasium"),
        (lambda: EnvConfig(kwargs={"wrappers": []}), "env.kwargs must not contain 'wrappers'"),
        (lambda: EnvConfig(kwargs={"engine": "batch"}), "env.kwargs must not contain 'engine'"),
        (lambda: RolloutConfig(episodes=0), "rollout.episodes must be > 0, got 0"),
        (lambda: RolloutConfig(min_env_steps=-1), "rollout.min_env_steps must be >= 0, got -1"),
        (lambda: EpisodeLimitConfig(initial=0), "rollout.episode_limit.initial must be > 0, got 0"),
        (lambda: EpisodeLimitConfig(threshold=0.0), r"episode_limit.threshold must be in \(0, 1\], got 0.0"),
        (lambda: EpisodeLimitConfig(threshold=1.1), r"episode_limit.threshold must be in \(0, 1\], got 1.1"),
        (lambda: EpisodeLimitConfig(threshold=float("nan")), "rollout.episode_limit.threshold"),
        (lambda: EpisodeLimitConfig(growth=1.0), "rollout.episode_limit.growth must be > 1, got 1.0"),
        (
            lambda: EpisodeLimitConfig(growth=float("inf")),
            "rollout.episode_limit.growth must be > 1, got inf",
        ),
        (lambda: PolicyConfig(hidden_sizes=[64, 0]), "policy.hidden_sizes"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr must be > 0"),
        (lambda: ESConfig(rank=0), "es.rank must be > 0, got 0"),
        (lambda: ESConfig(elite_fraction=0.0), r"es.elite_fraction must be in \(0, 1\], got 0.0"),
        (lambda: ESConfig(elite_fraction=1.5), r"es.elite_fraction must be in \(0, 1\], got 1.5"),
        (lambda: ESConfig(elite_fraction=float("nan")), "es.elite_fraction"),
        (lambda: ESConfig(weight_decay=-1.0), "es.weight_decay must be >= 0, got -1.0"),
        (lambda: ESConfig(weight_decay=float("nan")), "es.weight_decay must be >= 0, got nan"),
        (lambda: PolicyConfig(observation_stack=0), "policy.observation_stack must be > 0, got 0"),
        (lambda: RolloutConfig(action_noise=-0.1), "rollout.action_noise must be >= 0, got -0.1"),
        (lambda: RolloutConfig(final_alive_bonus=-1.0), "rollout.final_alive_bonus must be >= 0, got -1.0"),
        (lambda: RolloutConfig(final_alive_bonus=float("inf")), "rollout.final_alive_bonus must be >= 0"),
        (lambda: PolicyConfig(recurrent_size=0), "policy.recurrent_size must be > 0, got 0"),
        (
            lambda: PolicyConfig(conv_layers=[[8, 3, 1]]),
            r"policy.conv_layers must hold \[channels, kernel, stride, padding\], got \[8, 3, 1\]",
        ),
        (lambda: PolicyConfig(conv_layers=[[8, 3, 0, 1]]), "policy.conv_layers must hold"),
        (lambda: PolicyConfig(conv_layers=[[8, 3, 1, -1]]), "policy.conv_layers must hold"),
        (lambda: OptimizerConfig(kwargs={"lr": 0.1}), "must not contain lr: set optimizer.lr"),
        (lambda: OptimizerConfig(kwargs={"maximize": True}), "must not contain maximize: fitness is always"),
        (lambda: EvaluationConfig(interval=-1), "evaluation.interval must be >= 0"),
        (lambda: SigmaAdaptationConfig(lr=0.1), "es.sigma_adaptation.lr needs es.sigma_adaptation.rule"),
        (lambda: SigmaAdaptationConfig(lr=0.0), "es.sigma_adaptation.lr must be > 0, got 0"),
        (lambda: SigmaAdaptationConfig(max_change=1.0), "max_change must be between 0 and 1, got 1.0"),
        (lambda: adapting(num_bases=8), "needs es.base gaussian and es.num_bases >= 2.*got rademacher and 8"),
        (lambda: adapting(base="gaussian"), "needs es.base gaussian and.*got gaussian and 1"),
        (lambda: adapting(perturbation="low_rank"), "needs es.perturbation flipout or independent"),
        (
            lambda: adapting("snes", perturbation="independent"),
            "es.sigma_adaptation.rule snes needs es.fitness_shaping nes, got centered_ranks",
        ),
        (lambda: Config(seed=-1), "seed must be >= 0"),
        (lambda: Config(threads=0), "threads must be > 0"),
        (lambda: Config(es=ESConfig(sigma_schedule=ScheduleConfig("linear"))), "a schedule needs a budget"),
        (
            lambda: Config(rollout=RolloutConfig(final_alive_bonus=0.0)),
            "rollout.final_alive_bonus needs a budget: set generations or max_env_steps",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("perturbation", ["independent", "low_rank"])
def test_other_noise_needs_no_bases(perturbation):
    assert ESConfig(population_size=10, num_bases=4, perturbation=perturbation).population_size == 10


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


def test_the_alive_bonus_goes_from_its_start_to_its_end():
    rising, falling = (
        RolloutConfig(final_alive_bonus=5.0),
        RolloutConfig(alive_bonus=0.5, final_alive_bonus=0.0),
    )
    assert [rising.alive_bonus_at(progress) for progress in (0.0, 0.1, 0.5, 1.0)] == [0.0, 0.5, 2.5, 5.0]
    assert [falling.alive_bonus_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.5, 0.25, 0.0]
    assert RolloutConfig(alive_bonus=0.3).alive_bonus_at(0.7) == 0.3


def test_progress_is_the_budget_that_is_used_up_most():
    assert Config().progress(1000, 10**9) == 0.0
    assert Config(generations=10).progress(4, 10**9) == 0.4
    assert Config(generations=10, max_env_steps=1000).progress(4, 700) == 0.7
    assert Config(max_env_steps=1000).progress(4, 1300) == 1.0


def test_values_at_the_edge_of_their_range_are_taken():
    assert EnvConfig(engine="gymnasium", wrappers=["ClipReward"]).wrappers == ["ClipReward"]
    assert EpisodeLimitConfig(initial=1, threshold=1.0, growth=1.01).threshold == 1.0
    assert RolloutConfig(min_env_steps=0, episodes=1).episode_limit.initial is None


@pytest.mark.parametrize(
    ("limit", "share", "following"),
    [
        (None, 1.0, None),
        (100, 0.5, 150),
        (100, 0.49, 100),
        (101, 0.8, 151),  # 151.5, rounded down
        (1, 1.0, 2),  # 1.5 rounded down would stand still
    ],
)
def test_the_episode_limit_grows_when_enough_episodes_reach_it(limit, share, following):
    assert EpisodeLimitConfig(initial=limit, threshold=0.5, growth=1.5).next(limit, share) == following


# SWIG's types come without a module; raised inside its generated code, the warning crashes the interpreter.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_builds_a_trainer(name):
    config = load_config(find_config(name))
    if name == "lunar_lander.yaml":
        pytest.importorskip("Box2D", reason="the box2d extra is not installed")
    trainer = Trainer(config)
    try:
        assert trainer.es.population_size == config.es.population_size
        assert not trainer.finished
    finally:
        trainer.close()


def test_every_native_task_has_a_configuration():
    assert set(NATIVE_IDS) <= {load_config(find_config(name)).env.id for name in SHIPPED}


def test_a_configuration_is_found_by_path_before_name_and_with_or_without_suffix():
    shipped = find_config("humanoid.yaml")
    assert shipped == find_config("humanoid") == shipped_config_dir() / "humanoid.yaml"
    Path("humanoid.yaml").write_text("seed: 3\n")
    assert find_config("humanoid.yaml") == Path("humanoid.yaml")


def test_a_missing_configuration_is_named_beside_the_shipped_ones():
    with pytest.raises(ValueError, match=r"'nope.yaml' does not exist.*humanoid.yaml"):
        find_config("nope.yaml")
