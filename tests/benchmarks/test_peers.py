"""The comparison with other libraries: episodes of the pool, what is counted, the summary, no orphans."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest

from benchmarks.peers import contestant, run
from benchmarks.peers.contestant import Job, time_generations
from benchmarks.peers.pool import EpisodePool, Moments, Shared, _run_generation, make_envs
from es_flipout.cli.results import Results

TASK, LIMIT, POPULATION = "InvertedPendulum-v5", 8, 21
# A member has one weight, the force that it pushes with: some fall early, others stand until the limit.
FORCES = np.resize(np.float32([[0.0], [3.0], [-3.0], [0.01]]), (POPULATION, 1))


class ConstantForces:
    """Policies that look at nothing."""

    def __init__(self, observations, actions, num_envs):
        self.forces = np.zeros((num_envs, 1), np.float32)

    def load(self, place, weights):
        self.forces[place] = weights

    def move(self, source, target):
        self.forces[target] = self.forces[source]

    def normalize(self, mean, scale):
        self.statistics = mean, scale

    def act(self, observations, live):
        return self.forces


class Watched(gym.Wrapper):
    """Refuses to be stepped after an episode has ended, and counts steps."""

    steps, running = 0, False

    def reset(self, **kwargs):
        self.running, self.length = True, 0
        return super().reset(**kwargs)

    def step(self, action):
        assert self.running
        self.steps += 1
        self.length += 1
        result = super().step(action)
        self.running = not result[2] and self.length < LIMIT
        return result


def check(returns, lengths) -> None:
    """The reward of InvertedPendulum is 1 a step, and 0 for the step in which it falls."""
    pushes = np.abs(FORCES[:, 0]) > 1
    assert (lengths[pushes] < LIMIT).all()
    assert (lengths[~pushes] == LIMIT).all()
    np.testing.assert_array_equal(returns, lengths - pushes)


@pytest.mark.parametrize("num_envs", [1, 4, POPULATION + 3])
def test_each_member_has_one_episode_and_only_live_steps_are_taken(num_envs):
    shared = Shared(
        multiprocessing.RawArray(ctypes.c_float, FORCES.ravel()),
        multiprocessing.RawArray(ctypes.c_double, [np.nan] * POPULATION),
        multiprocessing.RawArray(ctypes.c_int64, POPULATION),
        multiprocessing.Value(ctypes.c_int64, 0),
    )
    envs = [Watched(env) for env in make_envs(TASK, range(num_envs))]
    policies = ConstantForces(envs[0].observation_space, envs[0].action_space, num_envs)
    moments = _run_generation(shared, POPULATION, LIMIT, envs, policies)
    _, returns, lengths = shared.arrays(POPULATION)
    check(returns, lengths)
    assert moments.count == lengths.sum() == sum(env.steps for env in envs)


@pytest.mark.slow
def test_the_pool_shares_a_population_out_and_gathers_its_moments():
    pool = EpisodePool(
        *(TASK, LIMIT, ConstantForces),
        population_size=POPULATION,
        num_weights=1,
        processes=2,
        num_envs=2,
        seed=0,
    )
    steps = 0
    with pool:
        for _ in range(2):
            returns, lengths = pool.evaluate(FORCES)
            check(returns, lengths)
            steps += lengths.sum()
    assert pool.moments.count == steps


def fails(observations, actions, num_envs):
    raise ValueError("no such policy")


@pytest.mark.slow
def test_a_failing_worker_is_heard_of():
    with (
        EpisodePool(
            TASK, LIMIT, fails, population_size=4, num_weights=1, processes=1, num_envs=2, seed=0
        ) as pool,
        pytest.raises(RuntimeError, match="no such policy"),
    ):
        pool.evaluate(FORCES[:4])


def test_moments_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype(np.float32)
    moments, other = Moments(4), Moments(4)
    moments.add(rows[:20])
    other.add(rows[20:])
    moments.merge(other)
    mean, scale = moments.mean_and_scale()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(1 / scale, rows.std(axis=0), rtol=1e-5)


def test_the_first_generation_is_not_counted(monkeypatch):
    generations = iter([(1000, 1), (10, 2), (20, 2), (40, 2)])
    clock = 0.0

    def run_generation() -> tuple[int, int]:
        nonlocal clock
        clock += 3.0
        return next(generations)

    monkeypatch.setattr(contestant.time, "perf_counter", lambda: clock)
    result = time_generations(run_generation, 5.0, {})
    assert (result.env_steps, result.episodes, result.generations) == (30, 4, 2)
    assert result.seconds == 6.0


def test_every_other_round_is_in_reverse_order():
    assert list(run.turns(["a", "b"], 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_settings_that_do_not_exist_are_refused():
    job = Job(TASK, 4, 1.0, 0, {"num_envs": 3})
    assert job.settings({"num_envs": 1, "processes": 2}) == {"num_envs": 3, "processes": 2}
    with pytest.raises(ValueError, match="num_envs"):
        job.settings({"processes": 2})


def test_the_summary_is_of_medians_and_of_ratios_within_a_round():
    case = Results({})

    def add(index: int, name: str, rate: float, physics: float | None = None) -> None:
        counts = {"env_steps": 600, "episodes": 20, "generations": 1, "seconds": 600 / rate}
        run.add(case, index, name, {**counts, "physics_seconds": physics and 600 / physics}, {})

    for index, (rate, physics, peer) in enumerate([(900, 1000, 300), (400, 500, 200), (800, 1600, 200)]):
        add(index, "ours", rate, physics)
        add(index, "EvoX OpenES", peer)
    add(0, "SB3-contrib ARS", 100)
    assert run.fastest_peer(case) == "EvoX OpenES"
    add(1, "SB3-contrib ARS", 500)
    assert run.fastest_peer(case) == "SB3-contrib ARS"  # the median of two
    assert run.fastest_peer(case, "evox_pool") == "EvoX OpenES"
    assert run.fastest_peer(case, "evosax_pool") is None
    case.rows = [row for row in case.rows if row["contestant"] != "SB3-contrib ARS"]
    lines = {line.split("  ")[1].strip(): line.split() for line in run.table(case).splitlines()[1:]}
    assert lines["raw physics"][2:] == ["1,000", "500", "1,600", "1.00", "0.80", "30.0"]
    assert lines["EvoX OpenES"][2:] == ["200", "200", "300", "0.30", "3.00", "30.0"]
    assert lines["ours"][1:] == ["800", "400", "900", "0.80", "1.00", "30.0"]
    assert "ours / fastest peer (EvoX OpenES): 3.00 (2.00 to 4.00)" in run.table(case)


def test_a_measurement_leaves_no_process_behind(tmp_path: Path):
    with run.process_tree():
        # A child whose own child is orphaned, in another session.
        command = ["sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/id"]
        subprocess.run(command, check=True)
        orphan = int((tmp_path / "id").read_text())
        assert orphan in {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(ProcessLookupError):
        os.kill(orphan, 0)
    with suppress(ChildProcessError):
        os.waitpid(orphan, os.WNOHANG)
