"""A run from which nothing can be learned ends and says why; one with accidents goes on."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from es_flipout.cli.arguments import load_config
from es_flipout.rollout import Episodes
from es_flipout.run import checkpoint
from es_flipout.run.errors import RunBrokenError, RunError
from es_flipout.run.failure_watch import HOPELESS, FailureWatch
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.terminal import Terminal
from es_flipout.run.trainer import Trainer


class Breaks(gym.Env):
    """Raises in step `at` of the episodes whose reset seed is in [first, last]."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, at: int, first: int = 0, last: int = 2**31) -> None:
        self.at, self.first, self.last = at, first, last

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.breaks = 0, self.first <= seed <= self.last
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.now += 1
        if self.now == self.at and self.breaks:
            raise RuntimeError("the gripper is stuck")
        return np.zeros(3, np.float32), float(action[0]), False, False, {}


gym.register("Gripper-v0", entry_point=Breaks, max_episode_steps=8)


KILLS = """
import os
import gymnasium as gym

class Kills(gym.Env):
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (3,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        os._exit(3)

gym.register("Kills-v0", entry_point=Kills, max_episode_steps=8)
"""


@pytest.fixture
def breaking(tiny_config):
    """Returns what makes the configuration of a run in `Breaks`."""

    def make(**kwargs):
        config = load_config(tiny_config)
        env = replace(config.env, id="Gripper-v0", kwargs=kwargs)
        return replace(config, env=env, evaluation=replace(config.evaluation, interval=0), generations=9)

    return make


def train(config):
    """Returns the generations reported before the run broke, the one it was saved after, and the message."""
    run = RunDirectory.create(config)
    with (
        closing(Trainer(config)) as trainer,
        closing(JsonLines(run.metrics)) as reporter,
        pytest.raises(RunBrokenError) as caught,
    ):
        trainer.train(run, [reporter])
    return len(run.read_metrics()), checkpoint.load(run.last)["generation"], str(caught.value)


def test_an_environment_that_always_breaks_in_its_first_step_is_refused(breaking):
    with pytest.raises(ValueError, match=r"^Gripper-v0: RuntimeError: the gripper is stuck$"):
        Trainer(breaking(at=1))


def test_an_environment_that_kills_its_process_at_the_start_is_refused(breaking, tmp_path, monkeypatch):
    (tmp_path / "kills.py").write_text(KILLS)
    monkeypatch.syspath_prepend(tmp_path)
    config = breaking()
    env = replace(config.env, id="kills:Kills-v0", engine="gymnasium_processes")
    with pytest.raises(ValueError, match=r"^kills:Kills-v0: the worker process died"):
        Trainer(replace(config, env=env))


def test_a_first_step_that_breaks_every_episode_of_the_population_ends_the_run(breaking):
    reported, _, message = train(breaking(at=1, first=3))  # the trial at the start has smaller seeds
    assert reported == 0
    assert message == (
        "every episode of generation 1 failed in its first step: RuntimeError: the gripper is stuck"
    )


def test_a_later_step_that_breaks_every_episode_ends_the_run_after_some_generations(breaking):
    reported, saved, message = train(breaking(at=5))
    assert reported == saved == HOPELESS - 1
    assert message.endswith("failed, as in the 2 populations before: RuntimeError: the gripper is stuck")


def test_a_generation_of_many_populations_ends_as_soon(breaking):
    config = breaking(at=5)
    config = replace(config, rollout=replace(config.rollout, min_env_steps=10**6))
    assert train(config)[0] == 0


def table(failed: int, size: int = 4, length: int = 5) -> Episodes:
    episodes = Episodes.of_population(range(size))
    lengths = np.full(size, length)
    faults = dict.fromkeys(range(failed), "broken")
    episodes.record(np.arange(size), np.ones(size), lengths, faults=faults)
    return episodes


def test_accidents_do_not_end_a_run():
    watch = FailureWatch("Some-v0", None)
    for failed in (4, 4, 3, 4, 4, 0, 4, 4, 1):
        watch.check(table(failed), 2)
    watch.check(table(3, length=1), 3)
    watch.check(table(4), 4)
    watch.check(table(4), 4)
    with pytest.raises(RunBrokenError, match="generation 5 failed, as in the 2 populations before: broken"):
        watch.check(table(4), 5)


def test_an_environment_that_never_ends_is_told_of_in_the_first_generation_alone():
    with pytest.raises(RunError, match=r"no episode ended within 5 env steps: set env\.kwargs\.max_epis"):
        FailureWatch("Some-v0", 5).check(table(0), 1)
    FailureWatch("Some-v0", 5).check(table(0), 2)
    FailureWatch("Some-v0", 6).check(table(0), 1)
    FailureWatch("Some-v0", None).check(table(0), 1)


def test_failures_of_the_score_are_reported_with_their_reasons(breaking):
    config = breaking(at=5, first=7, last=8)
    score = replace(config.evaluation, interval=1, episodes=5, seed=4)
    run = RunDirectory.create(replace(config, evaluation=score, generations=1))
    with closing(Trainer(replace(config, evaluation=score, generations=1))) as trainer:
        screen = Console(file=io.StringIO(), width=200)
        with closing(JsonLines(run.metrics)) as lines, closing(Terminal(screen, None)) as terminal:
            trainer.train(run, [lines, terminal])
    [figures] = run.read_metrics()
    assert figures["failures"] == {}
    assert figures["score_failures"] == {"RuntimeError: the gripper is stuck": 2}
    assert "2 failed episodes of the score: RuntimeError: the gripper is stuck" in screen.file.getvalue()
