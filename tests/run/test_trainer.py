"""The generation loop: learning, exactness across threads and interruptions, what is written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout.cli.arguments import load_config
from es_flipout.rollout import (
    BackgroundScorer,
    DevicePlayer,
    Episodes,
    HostPlayer,
    PlayError,
    PlayStoppedError,
    WorkerPlayer,
)
from es_flipout.run import checkpoint
from es_flipout.run import trainer as trainer_module
from es_flipout.run.build import official_scorer
from es_flipout.run.config import Config, EpisodeLimitConfig, ScheduleConfig, SigmaAdaptationConfig
from es_flipout.run.errors import RunBrokenError, RunError
from es_flipout.run.journal import Journal
from es_flipout.run.play_generation import play_generation
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer


@pytest.fixture
def config(tiny_config) -> Config:
    return load_config(tiny_config)


def train(config: Config, run: RunDirectory, stop_after: int | None = None) -> Trainer:
    """Trains in `run` from wherever it stands; stops within the generation after `stop_after`."""
    trainer = Trainer(config)
    # Asked many times a generation: stops in the middle of one, not at its end.
    questions = iter(range(10**9))
    asked_from: list[int] = []

    def should_stop() -> bool:
        question = next(questions)
        if stop_after is None or trainer.es.generation < stop_after:
            return False
        asked_from.append(question)
        return len(asked_from) > 3

    with closing(trainer):
        trainer.restore(run)
        with closing(JsonLines(run.metrics)) as reporter:
            trainer.train(run, [reporter], should_stop)
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


@pytest.mark.parametrize(
    ("engine", "is_ready", "reported"),
    # Generations 2, 4 and 6 are scored. A score that takes long holds up the reports up to the next one.
    [
        ("auto", True, {0: 0, 1: 1, 3: 3, 4: 3, 5: 5, 6: 6}),
        ("auto", False, {0: 0, 1: 1, 3: 1, 4: 3, 5: 3, 6: 6}),
        ("warp", False, {0: 0, 3: 1, 5: 3, 6: 6}),
    ],
)
def test_a_stopped_and_resumed_run_is_bit_identical_to_an_undisturbed_one(
    config, engine, is_ready, reported, monkeypatch
):
    monkeypatch.setattr(BackgroundScorer, "is_ready", is_ready)
    logging = replace(config.logging, keep_interval=1)
    config = replace(config, env=replace(config.env, engine=engine), logging=logging)
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    for generation, count in reported.items():
        stop_after = None if generation == config.generations else generation
        assert train(config, parts, stop_after).es.generation == generation
        assert len(figures(parts)) == count
        if generation:
            state = checkpoint.load(parts.last)
            assert state["generation"] == generation
            assert ("unscored" in state) == (count < generation)
            assert len(state.get("unscored", {}).get("later", ())) == max(generation - count - 1, 0)
    for name in ("last", "best"):
        assert_same_state(checkpoint.load(getattr(whole, name)), checkpoint.load(getattr(parts, name)))
    for generation in range(1, 7):
        kept = (checkpoint.load(run.kept(generation)) for run in (whole, parts))
        assert_same_state(*kept)
    assert figures(whole) == figures(parts)
    assert [line["generation"] for line in figures(parts)] == [1, 2, 3, 4, 5, 6]


def test_how_long_a_score_takes_changes_nothing(config, monkeypatch):
    config = replace(config, logging=replace(config.logging, keep_interval=1))
    runs = []
    for is_ready in (True, False):
        monkeypatch.setattr(BackgroundScorer, "is_ready", is_ready)
        runs.append(RunDirectory.create(replace(config, out=f"ready_{is_ready}")))
        train(config, runs[-1])
    assert figures(runs[0]) == figures(runs[1])
    for generation in range(1, 7):
        assert_same_state(*(checkpoint.load(run.kept(generation)) for run in runs))
    assert_same_state(*(checkpoint.load(run.best) for run in runs))


def test_generations_that_wait_for_a_score_that_never_comes_are_in_the_checkpoint(config, monkeypatch):
    class Lost(BackgroundScorer):
        is_ready = False

        def result(self, should_stop=None):
            raise PlayError("the center cannot be scored: lost")

    run = RunDirectory.create(replace(config, out="lost"))
    with monkeypatch.context() as patch:
        patch.setattr("es_flipout.run.build.BackgroundScorer", Lost)
        with pytest.raises(RunBrokenError, match="lost"):
            train(config, run)
    waiting = checkpoint.load(run.last)["unscored"]
    assert [figures["metrics"]["generation"] for figures in (waiting, *waiting["later"])] == [2, 3]
    train(config, run)
    assert [line["generation"] for line in figures(run)] == [1, 2, 3, 4, 5, 6]


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


@pytest.mark.parametrize("what", ["a run", "a checkpoint"])
def test_a_warm_start_begins_with_another_runs_policy_and_moments(config, what):
    source = RunDirectory.create(replace(config, out="source"))
    train(config, source)
    trained = checkpoint.load(source.last)["policy"]
    config = replace(config, seed=1, init_from=str(source.path if what == "a run" else source.last))
    with closing(Trainer(config)) as trainer:
        assert_same_state(trainer.policy.state_dict(), trained)
        assert trainer.policy.normalizer.count > 0
        assert (trainer.es.generation, trainer.env_steps, trainer.es.optimizer.state) == (0, 0, {})
    warm = RunDirectory.create(replace(config, out="warm"))
    train(config, warm)
    assert figures(warm)[0]["fitness_mean"] > 2 * figures(source)[0]["fitness_mean"]


def test_a_warm_start_is_made_once(config):
    source, whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("source", "a", "b"))
    train(replace(config, generations=2), source)
    config = replace(config, seed=1, init_from="source")
    train(config, whole)
    train(config, parts, stop_after=0)
    parts.last.unlink()  # killed before its first checkpoint: the start is made again
    train(config, parts, stop_after=3)
    source.last.unlink()
    with pytest.raises(RunError, match=r"checkpoint source/checkpoints/last.pt does not exist"):
        Trainer(config)
    with closing(Trainer(config, continues=True)) as trainer:
        trainer.restore(parts)
        trainer.train(parts)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))


def test_a_warm_start_with_another_policy_is_told(config):
    source = RunDirectory.create(replace(config, out="source"))
    train(replace(config, generations=1), source)
    config = replace(config, policy=replace(config.policy, hidden_sizes=[9]), init_from="source")
    with pytest.raises(
        RunError, match=r"source/checkpoints/last.pt was saved with a different policy: network.0.weight is"
    ):
        Trainer(config)


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
    assert all(0 < line["timing"]["live_share"] <= 1 for line in run.read_metrics())


def test_the_alive_bonus_counts_in_scores_but_not_in_fitness(config):
    # InvertedPendulum pays 1 for every step but the one in which the pole falls, and nothing else.
    config = replace(config, rollout=replace(config.rollout, alive_bonus=1.0), generations=2)
    run = RunDirectory.create(config)
    train(config, run)
    for line in figures(run):
        assert line["episode_length"] > 2
        assert -1 <= line["fitness_worst"] <= line["fitness_best"] <= 0
    assert figures(run)[0]["tied_fraction"] == 1  # what the update was made of: all have fallen
    assert figures(run)[-1]["score"] > 2


@pytest.mark.parametrize("budget", [{"generations": 4}, {"generations": None, "max_env_steps": 192}])
@pytest.mark.parametrize(
    ("start", "end", "fitness"),
    # In three steps no pole falls: all 16 returns of a generation are 3, and four have 192 env steps.
    # The progress at the start of each generation is 0, 1/4, 2/4, 3/4.
    [
        (0.5, 2.5, [1.5, 0.0, -1.5, -3.0]),  # 3 minus 3 x 0.5, 1, 1.5, 2
        (1.0, 0.0, [0.0, 0.75, 1.5, 2.25]),  # 3 minus 3 x 1, 0.75, 0.5, 0.25
        (0.5, None, [1.5] * 4),
    ],
)
def test_the_alive_bonus_follows_the_budget(config, budget, start, end, fitness):
    config = replace(
        config,
        env=replace(config.env, kwargs={"max_episode_steps": 3}),
        rollout=replace(config.rollout, alive_bonus=start, final_alive_bonus=end),
        **budget,
    )
    run = RunDirectory.create(config)
    train(config, run)
    assert [line["fitness_mean"] for line in figures(run)] == fitness
    assert [line["fitness_best"] for line in figures(run)] == fitness


def test_a_resumed_run_goes_on_with_its_alive_bonus(config):
    rollout = replace(config.rollout, final_alive_bonus=2.0)
    config = replace(config, rollout=rollout, generations=None, max_env_steps=1000)
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    train(config, parts, stop_after=2)
    train(config, parts)
    assert figures(whole) == figures(parts)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    # Two is more than a step pays, whatever members do.
    assert figures(whole)[0]["fitness_worst"] > 0 > figures(whole)[-1]["fitness_best"]


def test_of_several_episodes_each_loses_its_own_bonus():
    episodes = Episodes.of_population([[0, 1], [2, 3]])
    episodes.returns[:], episodes.lengths[:] = [10.0, 4.0, np.nan, 1.0], [4, 2, 1, 1]
    found = episodes.fitness_without(0.5)
    assert found[0] == (8 + 3) / 2
    assert found[1].isnan()
    assert episodes.fitness[0] == (10 + 4) / 2


def test_the_center_is_scored_at_every_interval_and_at_the_end(config):
    run = RunDirectory.create(config)
    trainer = train(replace(config, generations=5), run)
    lines = figures(run)
    assert [line["score"] is not None for line in lines] == [False, True, False, True, True]
    with closing(official_scorer(config.env, config.evaluation.episodes)) as scorer:
        official = scorer.score(trainer.policy, seed=config.evaluation.seed)
    assert lines[-1]["score"] == official.mean_return
    best = max(line["score"] for line in lines if line["score"] is not None)
    assert checkpoint.load(run.best)["best_score"] == best


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Humanoid-v5"])
def test_every_score_is_the_official_one_whatever_it_was_measured_in(config, env_id):
    config = replace(config, env=replace(config.env, id=env_id))
    runs = []
    for official in (False, True):
        evaluation = replace(config.evaluation, official=official, interval=1)
        run = RunDirectory.create(replace(config, out=f"official-{official}"))
        train(replace(config, generations=3, evaluation=evaluation), run)
        runs.append(figures(run))
    assert runs[0] == runs[1]
    assert len({line["score"] for line in runs[0]}) == 3


@pytest.fixture
def judges(monkeypatch):
    """Whether each score that is begun must be measured in the official environment."""
    begun = []
    start = BackgroundScorer.start

    def note(self, policy, seed, *, official=False):
        begun.append(official)
        start(self, policy, seed, official=official)

    monkeypatch.setattr(BackgroundScorer, "start", note)
    return begun


@pytest.mark.parametrize("budget", [{"generations": 5}, {"generations": None, "max_env_steps": 900}])
def test_the_official_environment_judges_the_last_center(config, judges, budget):
    config = replace(config, evaluation=replace(config.evaluation, interval=1), **budget)
    train(config, RunDirectory.create(config))
    assert len(judges) >= 3
    assert judges == [False] * (len(judges) - 1) + [True]


@pytest.mark.parametrize(("generations", "official"), [(3, False), (2, True)])
def test_a_resumed_run_repeats_its_score_in_the_same_environment(
    config, judges, generations, official, monkeypatch
):
    config, run = replace(config, generations=generations), RunDirectory.create(config)
    with closing(Trainer(config)) as trainer:
        monkeypatch.setattr(trainer.scorer, "result", stopped)
        trainer.train(run)  # until it waits for the score of generation 2
    with closing(Trainer(config)) as trainer:
        trainer.restore(run)
    assert judges == [official, official]


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
    with pytest.raises(
        RunError, match="does not fit the run's config: the state was saved with a different optimizer"
    ):
        other.restore(run)
    other.close()


@pytest.mark.parametrize("kwargs", [{"reset_noise_scale": "x"}, {"reset_noise_scale": -1.0}, {"width": "x"}])
def test_a_value_that_only_an_episode_refuses_is_told_at_once(config, kwargs):
    with pytest.raises(ValueError, match=r"^InvertedPendulum-v5: .*Error"):
        Trainer(replace(config, env=replace(config.env, kwargs=kwargs)))


def test_a_checkpoint_of_another_policy_is_refused(config):
    run = RunDirectory.create(config)
    train(replace(config, generations=1), run)
    other = Trainer(replace(config, policy=replace(config.policy, hidden_sizes=[9])))
    before = run.last.read_bytes()
    with pytest.raises(RunError, match=r"network.0.weight is \(8, 4\), but \(9, 4\) in"):
        other.restore(run)
    other.close()
    assert run.last.read_bytes() == before


class FlakyEnv(gym.Env):
    """Walks on a line for 8 steps, and raises in the third if its seed is divisible by 5."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.breaks, self.time = seed % 5 == 0, 0
        self.place = self.np_random.normal()
        return np.array([self.place, self.time], np.float32), {}

    def step(self, action):
        self.time += 1
        if self.breaks and self.time == 3:
            raise RuntimeError("out of paint")
        self.place += float(action[0])
        return np.array([self.place, self.time], np.float32), -abs(self.place), False, self.time == 8, {}


class PlainEnv(FlakyEnv):
    """Never breaks, and takes no keyword argument, not even a render mode."""

    def __init__(self):
        super().__init__()

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.breaks = False
        return observation, info


class ClosedEnv(FlakyEnv):
    """Can only be entered by the seeds that a trainer tries at first."""

    def reset(self, *, seed=None, options=None):
        if seed >= 100:
            raise RuntimeError("closed for today")
        return super().reset(seed=seed)


gym.register("Closed-v0", ClosedEnv)
gym.register("Flaky-v0", FlakyEnv)
gym.register("Plain-v0", PlainEnv)


def recorded(trainer: Trainer) -> list[np.ndarray]:
    """Returns a list that gets the reset seeds of every population played, [P, E]."""
    seeds: list[np.ndarray] = []
    play = trainer.player.play

    def record(population: Any, episodes: Episodes, **options: Any) -> Episodes:
        seeds.append(episodes.reset_seed.reshape(population.size, -1))
        return play(population, episodes, **options)

    trainer.player.play = record
    return seeds


def short(config: Config, steps: int = 3, **rollout: Any) -> Config:
    """Returns a configuration of episodes of exactly `steps` env steps, without official scores."""
    env = replace(config.env, kwargs={"max_episode_steps": steps, "reset_noise_scale": 0.001})
    return replace(
        config,
        env=env,
        rollout=replace(config.rollout, **rollout),
        evaluation=replace(config.evaluation, interval=0),
    )


def seeds_of(config: Config, generations: int = 3, seed: int = 0) -> np.ndarray:
    """Returns the reset seeds of some generations, [generations, populations, P, E]."""
    trainer = Trainer(replace(config, seed=seed, generations=generations))
    seeds = recorded(trainer)
    trainer.train(RunDirectory.create(replace(config, out=f"seeds{next(NAMES)}")))
    trainer.close()
    return np.array(seeds).reshape(generations, -1, *seeds[0].shape)


NAMES: Iterator[int] = itertools.count()
MINIMUM = 100
"""Env steps of a generation; a population of 16 and episodes of 3 steps need 3 populations for it."""


@pytest.mark.parametrize("episodes", [1, 3])
def test_fresh_seeds_are_only_used_again_by_the_other_half_of_a_pair(config, episodes):
    fresh = short(config, episodes=episodes, min_env_steps=MINIMUM)
    seeds = seeds_of(fresh)
    assert seeds.shape == (3, 3 if episodes == 1 else 1, 16, episodes)
    assert (seeds[:, :, 0::2] == seeds[:, :, 1::2]).all()
    assert len(np.unique(seeds)) == seeds.size / 2
    assert not np.isin(seeds_of(fresh, seed=1), seeds).any()
    alone = replace(fresh, rollout=replace(fresh.rollout, antithetic_pairs_share_seeds=False))
    assert len(np.unique(seeds_of(alone))) == seeds.size
    single = replace(fresh, es=replace(fresh.es, antithetic=False))
    assert len(np.unique(seeds_of(single))) == seeds.size


def test_common_seeds_are_shared_by_all_members_of_a_generation(config):
    common = short(config, episodes=2, min_env_steps=MINIMUM, reset_seeds="common")
    seeds = seeds_of(common)
    assert seeds.shape == (3, 2, 16, 2)
    assert (seeds == seeds[:, :1, :1]).all()
    assert len(np.unique(seeds)) == 3 * 2  # generations x episodes


def test_fixed_seeds_are_shared_by_all_generations(config):
    fixed = short(config, episodes=2, min_env_steps=MINIMUM, reset_seeds="fixed")
    seeds = seeds_of(fixed)
    assert (seeds == seeds[:1, :1, :1]).all()
    assert len(np.unique(seeds)) == 2
    assert not np.isin(seeds_of(fixed, seed=1), seeds).any()


def test_further_populations_are_drawn_until_there_are_enough_env_steps(config):
    # 16 members x 3 steps: 48, 96, 144.
    config = replace(short(config, min_env_steps=MINIMUM), generations=2)
    run, trainer, told = RunDirectory.create(config), Trainer(config), []
    tell = trainer.es.tell

    def record(fitness: torch.Tensor, **options: Any) -> Any:
        told.append(fitness)
        return tell(fitness, **options)

    trainer.es.tell = record
    reporter = JsonLines(run.metrics)
    trainer.train(run, [reporter])
    reporter.close()
    trainer.close()
    assert [fitness.tolist() for fitness in told] == [[3.0] * 48] * 2
    assert [line["env_steps"] for line in figures(run)] == [144, 288]
    assert trainer.policy.normalizer.count == 288
    assert trainer.es.generation == 2


def test_no_population_more_is_drawn_than_needed(config):
    for minimum, populations in ((0, 1), (48, 1), (49, 2), (96, 2), (97, 3)):
        assert seeds_of(short(config, min_env_steps=minimum), generations=1).shape[1] == populations


def test_a_stopped_generation_of_several_populations_is_repeated_as_it_was(config):
    config = replace(short(config, min_env_steps=MINIMUM), generations=2)
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    with closing(Trainer(config)) as trainer:
        asked = itertools.count()
        trainer.train(parts, should_stop=lambda: next(asked) == 9)  # in the second population
        assert trainer.es.generation == 0
        trainer.train(parts)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))


def test_a_generation_stopped_before_its_score_is_reported_later(config):
    config = replace(config, generations=3)
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    with closing(Trainer(config)) as trainer, closing(JsonLines(parts.metrics)) as reporter:
        trainer.train(parts, [reporter], should_stop=lambda: trainer.es.generation == 2)
        assert trainer.es.generation == checkpoint.load(parts.last)["generation"] == 2
        assert len(figures(parts)) == 1
        trainer.train(parts, [reporter])
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    assert_same_state(checkpoint.load(whole.best), checkpoint.load(parts.best))
    assert figures(whole) == figures(parts)


def stopped(should_stop):
    raise PlayStoppedError


@pytest.mark.parametrize("generations", [2, 3])
def test_a_run_killed_between_a_report_and_its_checkpoint_reports_once(config, generations, monkeypatch):
    config = replace(config, generations=generations, logging=replace(config.logging, keep_interval=2))
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    with closing(Trainer(config)) as trainer, closing(JsonLines(parts.metrics)) as reporter:
        with monkeypatch.context() as patch:
            patch.setattr(trainer.scorer, "result", stopped)
            trainer.train(parts, [reporter])  # until it waits for the score of generation 2
        trainer._books.report_scored(Journal(config, parts, [reporter]), lambda: False)
        # Here it is killed.
    assert [line["generation"] for line in figures(parts)] == [1, 2]
    with closing(Trainer(config)) as trainer:
        trainer.restore(parts)
        assert not trainer.finished  # a score is missing
        assert trainer.reported_env_steps == trainer.env_steps - 1
    assert train(config, parts).finished
    for name in ("last", "best"):
        states = (checkpoint.load(getattr(run, name)) for run in (whole, parts))
        assert_same_state(*states)
    assert_same_state(checkpoint.load(whole.kept(2)), checkpoint.load(parts.kept(2)))
    assert figures(whole) == figures(parts)


def test_a_generation_is_reported_and_saved_while_the_next_is_played(config, monkeypatch):
    config = replace(config, evaluation=replace(config.evaluation, interval=4))
    run = RunDirectory.create(replace(config, out="run"))
    playing, seen = [0], []
    with closing(Trainer(config)) as trainer:
        play = trainer.player.play

        def noted(*args, **options):
            playing[0] = trainer.es.generation + 1
            try:
                return play(*args, **options)
            finally:
                playing[0] = 0

        class Noting(JsonLines):
            def report(self, metrics, *others):
                super().report(metrics, *others)
                seen.append(("report", metrics.generation, playing[0]))

        save_last = Journal.save_last

        def saving(journal, state):
            save_last(journal, state)
            seen.append(("checkpoint", state["generation"], playing[0]))

        monkeypatch.setattr(trainer.player, "play", noted)
        monkeypatch.setattr(Journal, "save_last", saving)
        with closing(Noting(run.metrics)) as reporter:
            trainer.train(run, [reporter], max_generations=3)
    assert seen == [
        ("report", 1, 2),
        ("checkpoint", 1, 2),
        ("report", 2, 3),
        ("checkpoint", 2, 3),
        ("report", 3, 0),
        ("checkpoint", 3, 0),
    ]


@pytest.mark.parametrize("generation", [1, 3, 6])
def test_no_checkpoint_is_ahead_of_a_report_that_could_not_be_written(config, generation):
    class Full(JsonLines):
        def report(self, metrics, *others):
            if metrics.generation == generation:
                raise OSError(28, "No space left on device")
            super().report(metrics, *others)

    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    message = f"cannot write the report of generation {generation}: No space left"
    with (
        closing(Trainer(config)) as trainer,
        closing(Full(parts.metrics)) as reporter,
        pytest.raises(RunBrokenError, match=message),
    ):
        trainer.train(parts, [reporter])
    assert len(figures(parts)) == generation - 1
    if parts.last.exists():
        state = checkpoint.load(parts.last)
        assert state["generation"] < generation or state["unscored"]["metrics"]["generation"] <= generation
    train(config, parts)
    assert figures(whole) == figures(parts)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))


@pytest.mark.parametrize("generation", [1, 2, 3, 4, 6])
def test_a_checkpoint_that_cannot_be_written_is_what_ends_the_run(config, generation, monkeypatch):
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    save_last = Journal.save_last

    def full(journal, state):
        with monkeypatch.context() as patch:
            if state["generation"] == generation:
                patch.setattr(checkpoint, "save", cannot_write)
            save_last(journal, state)

    def cannot_write(path, state):
        raise RunBrokenError("cannot write the checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_last", full)
        with pytest.raises(RunBrokenError, match="cannot write the checkpoint"):
            train(config, parts)
    train(config, parts)
    assert figures(whole) == figures(parts)
    for name in ("last", "best"):
        assert_same_state(checkpoint.load(getattr(whole, name)), checkpoint.load(getattr(parts, name)))


def test_the_rate_of_a_generation_holds_no_score_of_an_earlier_one(config, monkeypatch):
    env = replace(config.env, engine="gymnasium_processes")  # scored in this process
    config = replace(config, env=env, threads=1)
    playing, scored = [False], []
    run = RunDirectory.create(replace(config, out="run"))
    with closing(Trainer(config)) as trainer:
        play, result = trainer.player.play, trainer.scorer.result

        def noted(*args, **options):
            playing[0] = True
            try:
                return play(*args, **options)
            finally:
                playing[0] = False

        def scoring(*args):
            scored.append(playing[0])
            return result(*args)

        monkeypatch.setattr(trainer.player, "play", noted)
        monkeypatch.setattr(trainer.scorer, "result", scoring)
        trainer.train(run)
    assert scored == [False] * 3


def test_a_generation_that_cannot_be_played_loses_no_score_before_it(config, monkeypatch):
    run = RunDirectory.create(config)
    with closing(Trainer(config)) as trainer, closing(JsonLines(run.metrics)) as reporter:

        def fail_in_the_third(config, es, *others, **options):
            if es.generation == 2:
                raise RunError("the physics is on strike")
            return play_generation(config, es, *others, **options)

        monkeypatch.setattr(trainer_module, "play_generation", fail_in_the_third)
        with pytest.raises(RunError, match="on strike"):
            trainer.train(run, [reporter])
    assert [line["score"] is not None for line in figures(run)] == [False, True]
    assert "unscored" not in checkpoint.load(run.last)
    assert checkpoint.load(run.best)["best_score"] == figures(run)[-1]["score"]


def test_the_best_checkpoint_is_of_its_own_generation(config):
    schedule = ScheduleConfig("linear", final_fraction=0.1)
    config = replace(config, optimizer=replace(config.optimizer, lr_schedule=schedule))
    run = RunDirectory.create(config)
    train(config, run)
    best = checkpoint.load(run.best)
    scores = {line["generation"]: line["score"] for line in figures(run) if line["score"]}
    assert best["best_score"] == scores[best["generation"]] == max(scores.values())
    [line] = [line for line in figures(run) if line["generation"] == best["generation"]]
    assert best["optimizer"]["param_groups"][0]["lr"] == line["lr"]  # not that of the next one


def test_a_center_that_cannot_be_scored_ends_the_run_with_the_reason(config, monkeypatch):
    run = RunDirectory.create(config)
    with closing(Trainer(config)) as trainer:
        monkeypatch.setattr(trainer.scorer, "result", raise_play_error)
        with pytest.raises(RunError, match="the center cannot be scored"):
            trainer.train(run)
    assert checkpoint.load(run.last)["generation"] in (2, 3)  # generation 3 may have been told already
    assert train(config, run).finished


def raise_play_error(should_stop):
    raise PlayError("the center cannot be scored: ValueError: no")


def with_limit(config: Config) -> Config:
    limit = EpisodeLimitConfig(initial=4, threshold=0.5, growth=1.5)
    return replace(config, rollout=replace(config.rollout, episode_limit=limit))


def test_the_episode_limit_grows_with_what_members_reach(config):
    config = with_limit(short(config, steps=10))
    config = replace(config, es=replace(config.es, sigma=0.001))
    run = RunDirectory.create(config)
    train(config, run)
    # Nobody falls: 4, 4 x 1.5 = 6, 9, 13, and no further, since the environment ends episodes at 10.
    assert [line["episode_limit"] for line in figures(run)] == [4, 6, 9, 13, 13, 13]
    assert [line["episode_length"] for line in figures(run)] == [4, 6, 9, 10, 10, 10]
    assert [line["fitness_mean"] for line in figures(run)] == [4, 6, 9, 10, 10, 10]
    assert checkpoint.load(run.last)["episode_limit"] == 13


def test_a_resumed_run_keeps_its_episode_limit(config):
    config = with_limit(config)
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    for stop_after in (1, 2, 4, None):
        train(config, parts, stop_after)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    assert figures(whole) == figures(parts)
    assert len({line["episode_limit"] for line in figures(whole)}) > 2


def test_without_a_limit_none_is_reported(config):
    run = RunDirectory.create(config)
    train(replace(config, generations=1), run)
    assert figures(run)[0]["episode_limit"] is None


@pytest.mark.parametrize("kind", ["fresh", "fixed"])
def test_the_next_generations_states_are_drawn_beside_this_one_on_a_device(config, kind, monkeypatch):
    config = replace(config, env=replace(config.env, engine="warp"), generations=3)
    config = replace(config, rollout=replace(config.rollout, reset_seeds=kind))
    play, played, prefetched = DevicePlayer.play, [], []

    def noting(self, population, episodes, **options):
        played.append(episodes.reset_seed)
        return play(self, population, episodes, **options)

    monkeypatch.setattr(DevicePlayer, "play", noting)
    monkeypatch.setattr(DevicePlayer, "prefetch", lambda self, seeds: prefetched.append(seeds.flatten()))
    train(config, RunDirectory.create(config))
    assert len(played) == 3
    assert np.array_equal(prefetched[:2], played[1:])


class Attentive(torch.nn.Module):
    """A policy whose rows torch rounds differently in other company."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.encoder = torch.nn.Linear(1, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.decoder = torch.nn.Linear(8, action_space.shape[0])

    def forward(self, observations):
        tokens = self.encoder(observations.unsqueeze(2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.decoder(mixed.mean(dim=1))


@pytest.mark.parametrize("kind", ["mlp", f"{__name__}:Attentive"])
def test_a_run_on_worker_processes_repeats_and_resumes_to_the_last_bit(config, kind):
    adapting = {"base": "gaussian", "num_bases": 4, "sigma_adaptation": SigmaAdaptationConfig("pgpe")}
    config = replace(
        config,
        env=replace(config.env, id="Hopper-v5", num_envs=16, kwargs={"max_episode_steps": 20}),
        es=replace(config.es, population_size=32, **adapting),
        policy=replace(config.policy, kind=kind),
        evaluation=replace(config.evaluation, interval=0),
        threads=2,
        generations=3,
    )
    runs = [RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts")]
    with closing(Trainer(config)) as trainer:
        assert isinstance(trainer.player, WorkerPlayer)
    for run, stops in zip(runs, ((None,), (2, None)), strict=True):
        for stop_after in stops:
            train(config, run, stop_after)
    whole, parts = runs
    assert figures(whole) == figures(parts)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    sigmas = [line["sigma"] for line in figures(whole)]
    assert len(set(sigmas)) == 3  # it adapts


@pytest.mark.parametrize(
    "env_id", [pytest.param("InvertedPendulum-v5", marks=pytest.mark.slow), "HalfCheetah-v5"]
)
def test_neither_envs_nor_threads_change_the_parameters(config, env_id):
    config = replace(config, es=replace(config.es, population_size=40), generations=3)
    lines, states = [], []
    for num_envs, threads in ((40, 1), (40, 2), (7, 1), (33, 2), (1, 1)):
        env = replace(config.env, id=env_id, kwargs={"max_episode_steps": 12}, num_envs=num_envs)
        run = RunDirectory.create(replace(config, out=f"envs{num_envs}threads{threads}"))
        train(replace(config, env=env, threads=threads), run)
        states.append(checkpoint.load(run.last))
        lines.append(figures(run))
    for state, line in zip(states, lines, strict=True):
        assert_same_state(state, states[0])
        assert line == lines[0]


def cartpole(config: Config, **env: Any) -> Config:
    return replace(config, env=replace(config.env, id="CartPole-v1", **env), generations=3)


def test_processes_change_no_figure(config):
    results = []
    for engine in ("auto", "gymnasium", "gymnasium_processes"):
        run_config = replace(cartpole(config, engine=engine), threads=2, out=engine)
        run = RunDirectory.create(run_config)
        train(run_config, run)
        results.append((checkpoint.load(run.last), figures(run)))
    for state, lines in results:
        assert_same_state(state, results[0][0])
        assert lines == results[0][1]
    assert results[0][1][-1]["score"] > 0


def noisy(config: Config, **env: Any) -> Config:
    env = {"id": "HalfCheetah-v5", "kwargs": {"max_episode_steps": 12}, **env}
    rollout = replace(config.rollout, action_noise=0.3)
    return replace(config, env=replace(config.env, **env), rollout=rollout, generations=3)


@pytest.mark.slow
def test_a_run_with_noise_on_actions_is_the_same_however_it_is_played_and_interrupted(config):
    results = []
    config = replace(config, evaluation=replace(config.evaluation, interval=0))
    for num_envs, threads, stops in ((8, 1, (None,)), (3, 1, (1, None)), (4, 2, (None,))):
        run_config = replace(noisy(config, num_envs=num_envs), threads=threads)
        run = RunDirectory.create(replace(run_config, out=f"envs{num_envs}threads{threads}"))
        for stop_after in stops:
            train(run_config, run, stop_after)
        results.append((checkpoint.load(run.last), figures(run)))
    for state, lines in results[1:]:
        assert_same_state(state, results[0][0])
        assert lines == results[0][1]


def test_scores_have_no_noise_on_actions(config):
    # The center stays as it is.
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-12))
    config = replace(config, policy=replace(config.policy, normalize_observations=False))
    lines = []
    for noise in (0.0, 0.3):
        run = RunDirectory.create(replace(config, out=f"noise{noise}"))
        train(replace(config, rollout=replace(config.rollout, action_noise=noise), generations=1), run)
        lines.append(figures(run)[-1])
    assert lines[0]["fitness_mean"] != lines[1]["fitness_mean"]
    assert lines[0]["score"] == lines[1]["score"]


def test_noise_on_actions_that_are_not_floats_is_refused_at_the_start(config):
    with pytest.raises(
        ValueError, match=r"^action noise needs .* got Discrete\(2\): set rollout.action_noise"
    ):
        Trainer(noisy(config, id="CartPole-v1", kwargs={}))


def test_wrappers_surround_training_and_scoring(config):
    wrappers = ["TimeAwareObservation", "FlattenObservation"]
    config = cartpole(config, wrappers=wrappers, kwargs={"max_episode_steps": 6})
    run = RunDirectory.create(config)
    trainer = train(config, run)
    assert trainer.policy.network[0].in_features == 5  # the time is the last
    assert trainer.policy.normalizer.mean[4] == pytest.approx(2.5)  # of the times 0 to 5
    assert figures(run)[-1]["fitness_mean"] == figures(run)[-1]["score"] == 6


def test_faults_are_counted_and_the_run_goes_on(config):
    config = replace(config, env=replace(config.env, id="Flaky-v0", kwargs={}), generations=4)
    config = replace(config, evaluation=replace(config.evaluation, interval=0))
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    trainer = Trainer(replace(config, seed=3))
    seeds = recorded(trainer)
    reporter = JsonLines(whole.metrics)
    trainer.train(whole, [reporter])
    reporter.close()
    trainer.close()
    for line, used in zip(figures(whole), seeds, strict=True):
        broken = int((used % 5 == 0).sum())
        assert line["failed_members"] == broken
        assert line["failures"] == ({"RuntimeError: out of paint": broken} if broken else {})
        assert line["episode_length"] == (3 * broken + 8 * (16 - broken)) / 16
        assert line["fitness_worst"] <= line["fitness_mean"] <= line["fitness_best"] <= 0
    assert sum(line["failed_members"] for line in figures(whole)) > 4
    assert all(value.isfinite().all() for value in trainer.policy.state_dict().values())
    assert trainer.policy.normalizer.count == 8 * sum((used % 5 != 0).sum() for used in seeds)

    for stop_after in (1, 2, None):
        train(replace(config, seed=3), parts, stop_after)
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))
    assert figures(whole) == figures(parts)


def test_a_fault_in_the_official_environment_does_not_end_the_run(config):
    config = replace(config, env=replace(config.env, id="Flaky-v0", kwargs={}), generations=2)
    config = replace(config, evaluation=replace(config.evaluation, seed=5, episodes=1))
    run = RunDirectory.create(config)
    assert train(replace(config, seed=3), run).finished
    assert len(figures(run)) == 2


def test_a_run_in_which_no_episode_can_begin_ends_with_the_reason(config):
    config = replace(config, env=replace(config.env, id="Closed-v0", kwargs={}))
    run = RunDirectory.create(config)
    with pytest.raises(RunError, match="no episode of generation 1 could start: RuntimeError: closed for"):
        train(config, run)


def test_an_environment_need_not_know_of_rendering(config):
    config = replace(config, env=replace(config.env, id="Plain-v0", kwargs={}), generations=1)
    run = RunDirectory.create(config)
    train(config, run)
    assert figures(run)[0]["score"] <= 0


def test_an_environment_that_cannot_be_made_is_told_at_once(config):
    with pytest.raises(ValueError, match=r"^Flaky-v0: .*unexpected keyword argument 'color'"):
        Trainer(replace(config, env=replace(config.env, id="Flaky-v0", kwargs={"color": "red"})))


@pytest.mark.parametrize(
    ("num_envs", "members", "episodes", "threads", "workers"),
    [
        (64, 64, 1, 2, 2),
        (64, 64, 1, 3, 3),
        (5, 64, 1, 8, 2),  # 2 envs or more in each
        (3, 64, 1, 2, None),
        (64, 64, 1, 1, None),
        (256, 2, 1, 2, None),  # no more envs than episodes
        (256, 4, 1, 3, 2),
        (256, 2, 2, 2, 2),
    ],
)
def test_native_envs_are_shared_out_over_processes(config, num_envs, members, episodes, threads, workers):
    config = replace(
        config,
        env=replace(config.env, num_envs=num_envs),
        es=replace(config.es, population_size=members),
        rollout=replace(config.rollout, episodes=episodes),
        threads=threads,
    )
    with closing(Trainer(config)) as trainer:
        if workers is None:
            assert isinstance(trainer.player, HostPlayer)
            assert [env.num_envs for env in trainer.player.envs] == [min(num_envs, members * episodes)]
        else:
            assert isinstance(trainer.player, WorkerPlayer)
            assert trainer.player.num_workers == workers
    for env in (
        replace(config.env, engine="gymnasium"),
        replace(config.env, wrappers=["RecordEpisodeStatistics"]),
    ):
        with closing(Trainer(replace(config, env=env))) as trainer:
            assert isinstance(trainer.player, HostPlayer)


def test_a_call_may_run_some_generations_only(config):
    whole, parts = (RunDirectory.create(replace(config, out=out)) for out in ("whole", "parts"))
    train(config, whole)
    trainer = Trainer(config)
    for generations in (2, 0, 1, 100):
        before = trainer.es.generation
        trainer.train(parts, max_generations=generations)
        assert trainer.es.generation == min(before + generations, config.generations)
        assert checkpoint.load(parts.last)["generation"] == trainer.es.generation
    trainer.close()
    assert_same_state(checkpoint.load(whole.last), checkpoint.load(parts.last))


@pytest.mark.parametrize("engine", ["auto", pytest.param("warp", marks=pytest.mark.slow)])
def test_inverted_pendulum_is_learnt(config, engine):
    kwargs = {"max_episode_steps": 200}
    config = replace(config, env=replace(config.env, num_envs=64, kwargs=kwargs, engine=engine))
    config = replace(config, es=replace(config.es, population_size=64), generations=20)
    run = RunDirectory.create(config)
    train(config, run)
    # Scored in the official environment, whatever it was trained in.
    scores = [line["score"] for line in figures(run) if line["score"] is not None]
    assert scores[0] < 150
    assert max(scores) == 200
