"""The generation loop: learning, exactness across threads and interruptions, what is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from es_flipout import checkpoint
from es_flipout.checkpoint import RunDirectory, RunError
from es_flipout.cli.arguments import load_config
from es_flipout.config import Config, ScheduleConfig
from es_flipout.evaluators import OfficialEvaluator
from es_flipout.metrics import JsonLines
from es_flipout.trainer import Trainer


@pytest.fixture
def config(tiny_config) -> Config:
    return load_config(tiny_config)


def train(config: Config, run: RunDirectory, stop_after: int | None = None) -> Trainer:
    """Trains in `run` from wherever it stands; stops within the generation after `stop_after`."""
    trainer = Trainer(config)
    trainer.restore(run)
    reporter = JsonLines(run.metrics)
    # Asked many times a generation: stops in the middle of one, not at its end.
    questions = iter(range(10**9))
    asked_from: list[int] = []

    def should_stop() -> bool:
        question = next(questions)
        if stop_after is None or trainer.es.generation < stop_after:
            return False
        asked_from.append(question)
        return len(asked_from) > 3

    trainer.train(run, [reporter], should_stop)
    reporter.close()
    trainer.close()
    return trainer


def figures(run: RunDirectory) -> list[dict]:
    """Returns the run's metrics without the figures that depend on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in lines:
        del line["timing"]
    return lines


def assert_same_state(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            assert_same_state(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same_state(left, right)
    else:
        assert a == b


def test_a_stopped_and_resumed_run_is_bit_identical_to_an_undisturbed_one(config):
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    for stop_after in (0, 1, 3, 4, None):
        trainer = train(config, parts, stop_after)
        assert trainer.es.generation == (stop_after if stop_after is not None else config.generations)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    assert_same_state(checkpoint.load(whole.best), checkpoint.load(parts.best))
    assert figures(whole) == figures(parts)
    assert [line["generation"] for line in figures(parts)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "HalfCheetah-v5", "Humanoid-v5"])
def test_the_thread_count_does_not_change_the_parameters(config, env_id):
    states = []
    for threads in (1, 2):
        env = replace(config.env, id=env_id, kwargs={"max_episode_steps": 25})
        run_config = replace(config, env=env, threads=threads, generations=2, out=f"threads{threads}")
        run = RunDirectory.create(run_config)
        train(run_config, run)
        states.append(checkpoint.load(run.last))
    assert_same_state(*states)


def test_another_seed_is_another_run(config):
    runs = [RunDirectory.create(replace(config, out=f"seed{seed}")) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        train(replace(config, seed=seed, generations=1), run)
    weights = [checkpoint.load(run.last)["policy"]["network.0.weight"] for run in runs]
    assert not torch.equal(*weights)


def test_env_steps_count_live_steps_and_fitness_is_the_return(config):
    # InvertedPendulum pays 1 for every step but the one in which the pole falls.
    run = RunDirectory.create(config)
    train(replace(config, generations=3), run)
    population = config.es.population_size
    steps = [0, *(line["env_steps"] for line in figures(run))]
    for line, before, after in zip(figures(run), steps[:-1], steps[1:], strict=True):
        assert after - before == pytest.approx(line["episode_length"] * population)
        assert line["episode_length"] - 1 <= line["fitness_mean"] <= line["episode_length"]
        assert 0 < line["live_share"] <= 1


def test_the_centre_is_scored_officially_at_every_interval_and_at_the_end(config):
    run = RunDirectory.create(config)
    trainer = train(replace(config, generations=5), run)
    lines = figures(run)
    assert [line["centre_score"] is not None for line in lines] == [False, True, False, True, True]
    judge = OfficialEvaluator(config.env.id, config.env.kwargs, config.evaluation.episodes)
    official = judge.score(trainer.policy, seed=config.evaluation.seed)
    judge.close()
    assert lines[-1]["centre_score"] == official.mean
    best = max(line["centre_score"] for line in lines if line["centre_score"] is not None)
    assert checkpoint.load(run.best)["best_score"] == best


def test_the_env_step_budget_ends_the_run_after_the_generation_that_reaches_it(config):
    run = RunDirectory.create(config)
    trainer = train(replace(config, generations=None, max_env_steps=400), run)
    steps = [0, *(line["env_steps"] for line in figures(run))]
    assert trainer.finished
    assert steps[-2] < 400 <= steps[-1]


def test_schedules_follow_the_budget(config):
    es = replace(config.es, sigma_schedule=ScheduleConfig("linear", 0.5))
    optimizer = replace(config.optimizer, lr_schedule=ScheduleConfig("exponential", 0.25))
    run = RunDirectory.create(config)
    train(replace(config, es=es, optimizer=optimizer, generations=4), run)
    # Progress at the start of each generation: 0, 1/4, 2/4, 3/4.
    assert [line["sigma"] for line in figures(run)] == pytest.approx([0.1, 0.0875, 0.075, 0.0625])
    rates = [0.05 * 0.25 ** (step / 4) for step in range(4)]
    assert [line["lr"] for line in figures(run)] == pytest.approx(rates)


def test_checkpoints_are_kept_when_asked_for(config):
    run = RunDirectory.create(config)
    logging = replace(config.logging, keep_interval=2, checkpoint_interval=4)
    train(replace(config, logging=logging, generations=5), run)
    kept = sorted(path.name for path in run.checkpoints.glob("generation_*.pt"))
    assert kept == ["generation_000002.pt", "generation_000004.pt"]
    assert checkpoint.load(run.checkpoints / kept[0])["generation"] == 2
    assert checkpoint.load(run.last)["generation"] == 5


class CrashError(Exception):
    """What ends a run at a chosen moment."""


@pytest.mark.parametrize("checkpoint_interval", [1, 3])
@pytest.mark.parametrize("crash_at", range(6))
def test_a_crash_around_any_write_resumes_exactly(config, monkeypatch, checkpoint_interval, crash_at):
    # The tiny run writes metrics each generation, and best, kept and last checkpoints in some. It dies at
    # every second of these writes in turn: by turns just before it and just after it.
    logging = replace(config.logging, checkpoint_interval=checkpoint_interval, keep_interval=2)
    config = replace(config, logging=logging)
    whole, crashed = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "crashed"))
    train(config, whole)

    writes = iter(range(10**9))
    save, report = checkpoint.save, JsonLines.report

    def crashing(write):
        def run(*arguments):
            dies = next(writes) == 2 * crash_at
            if dies and crash_at % 2:
                raise CrashError
            write(*arguments)
            if dies:
                raise CrashError

        return run

    trainer = Trainer(config)
    reporter = JsonLines(crashed.metrics)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", crashing(save))
        patch.setattr(JsonLines, "report", crashing(report))
        with pytest.raises(CrashError):
            trainer.train(crashed, [reporter])
    reporter.close()
    trainer.close()

    train(config, crashed)
    assert figures(whole) == figures(crashed)
    for path in whole.checkpoints.iterdir():
        assert_same_state(checkpoint.load(path), checkpoint.load(crashed.checkpoints / path.name))


def test_a_checkpoint_of_another_optimizer_is_refused(config):
    run = RunDirectory.create(config)
    train(replace(config, generations=1), run)
    other = Trainer(replace(config, optimizer=replace(config.optimizer, name="SGD")))
    with pytest.raises(RunError, match="does not fit the run's config: it is of another optimizer"):
        other.restore(run)
    other.close()


@pytest.mark.parametrize("kwargs", [{"reset_noise_scale": "x"}, {"reset_noise_scale": -1.0}, {"width": "x"}])
def test_a_value_that_only_an_episode_refuses_is_told_at_once(config, kwargs):
    with pytest.raises(ValueError, match=r"env\.kwargs do not fit InvertedPendulum-v5"):
        Trainer(replace(config, env=replace(config.env, kwargs=kwargs)))


def test_a_checkpoint_of_another_policy_is_refused(config):
    run = RunDirectory.create(config)
    train(replace(config, generations=1), run)
    other = Trainer(replace(config, policy=replace(config.policy, hidden_sizes=[9])))
    before = run.last.read_bytes()
    with pytest.raises(RunError, match=r"network.0.weight is \(8, 4\), .* is \(9, 4\)"):
        other.restore(run)
    other.close()
    assert run.last.read_bytes() == before


def test_a_failed_member_is_counted_and_does_not_poison_the_run(config):
    run = RunDirectory.create(config)
    trainer = Trainer(replace(config, generations=1))
    evaluate = trainer.evaluator.evaluate

    def with_failure(*arguments, **keywords):
        evaluation = evaluate(*arguments, **keywords)
        evaluation.fitness[3] = math.nan
        return evaluation

    trainer.evaluator.evaluate = with_failure
    reporter = JsonLines(run.metrics)
    trainer.train(run, [reporter])
    reporter.close()
    trainer.close()
    (line,) = figures(run)
    assert line["failed_members"] == 1
    assert math.isfinite(line["fitness_mean"])
    assert all(value.isfinite().all() for value in trainer.policy.parameters())


def test_inverted_pendulum_is_learnt(config):
    config = replace(config, env=replace(config.env, num_slots=64, kwargs={"max_episode_steps": 200}))
    config = replace(config, es=replace(config.es, population_size=64), generations=20)
    run = RunDirectory.create(config)
    train(config, run)
    scores = [line["centre_score"] for line in figures(run) if line["centre_score"] is not None]
    assert scores[0] < 150
    assert max(scores) == 200
