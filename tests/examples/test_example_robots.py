"""The quadruped and the arm: compiled, sound at their start, on every engine, and they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from es_flipout import make_vec
from es_flipout.cli import train

ROOT = Path(__file__).parents[2]
QUADRUPED, REACH = "examples.quadruped.quadruped:Quadruped-v0", "examples.reach.reach:Reach-v0"


def run_training(config, out, **options):
    words = {"config": str(ROOT / config), "out": str(out), "logging.reporters": "[jsonl]", **options}
    assert train.main([word for name, value in words.items() for word in (f"--{name}", value)]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("env_id", [QUADRUPED, REACH])
def test_the_task_is_compiled(env_id):
    env = make_vec(env_id, 2, info=False, threads=1, randomize=True)
    assert env.fused is not None, env.not_fused
    env.close()


def test_a_quadruped_that_is_to_stand_stands_and_trots_on_the_spot_otherwise():
    env = make_vec(QUADRUPED, 8, threads=1)
    env.reset(seed=0)
    commands = env._state.entries["commands"]
    commands[:4] = 0.0
    commands[4:] = torch.tensor([0.3, 0.0], dtype=torch.float64)
    before = env.engine.fields["qpos"].clone()
    feet = []
    for _ in range(100):
        env.step(torch.zeros(8, 14))
        feet.append(env.engine.fields["sensordata"][:, env.task.feet] > 0)
    assert not env.ended.any()
    feet = torch.stack(feet).double()[20:]
    assert feet[:, :4].mean() == 1.0  # all four on the floor
    assert 0.4 < feet[:, 4:].mean() < 0.9
    assert (env.engine.fields["qpos"][:4, :2] - before[:4, :2]).norm(dim=1).max() < 0.05


def test_pushes_masses_and_delays_are_those_of_the_episode():
    nominal, randomized = (make_vec(QUADRUPED, 3, threads=1, randomize=each) for each in (False, True))
    for env in (nominal, randomized):
        env.reset(seed=5)
    task = nominal.task
    assert nominal.checked_task.varied == ()
    masses = randomized.engine._batch.expanded("body_mass")
    trunk = task.body("trunk")
    assert len(np.unique(masses[:, trunk])) == 3
    assert np.array_equal(np.delete(masses[0], trunk), np.delete(task.model.body_mass, trunk))
    assert torch.equal(nominal._state.entries["commands"], randomized._state.entries["commands"])
    assert not nominal._state.entries["push"].any()
    fields = dict(randomized._state.fields)
    fields["step"] = fields["push_step"].clone()
    applied = task.control(fields, torch.zeros(3, 14))["xfrc_applied"]
    assert torch.equal(applied[:, trunk, :2], randomized._state.entries["push"])
    assert applied.count_nonzero() == 6
    fields["step"] = fields["push_step"] + 3
    assert not task.control(fields, torch.zeros(3, 14))["xfrc_applied"].any()


@pytest.mark.slow
def test_the_arm_learns_to_reach(tmp_path):
    metrics = run_training(
        "examples/reach/reach.yaml",
        tmp_path / "run",
        **{"max_env_steps": "200000", "evaluation.interval": "5", "threads": "2"},
    )
    scored = [each for each in metrics if each["score"] is not None]
    assert set(scored[-1]["score_info"]) == {"success", "distance"}
    assert scored[-1]["score_info"]["distance"] < 0.7 * scored[0]["score_info"]["distance"]


@pytest.mark.slow
def test_the_quadruped_trains_on_engine_warp(tmp_path):
    options = {"device": "cpu", "env.num_envs": "8", "es.population_size": "16", "evaluation.episodes": "2"}
    options |= {"max_env_steps": "600", "env.kwargs": "{max_episode_steps: 30}"}
    metrics = run_training("examples/quadruped/quadruped_gpu.yaml", tmp_path / "run", **options)
    assert metrics[-1]["failed_members"] == 0
    assert metrics[-1]["score"] is not None
    assert metrics[-1]["score_randomized"] is not None


@pytest.mark.slow
def test_the_quadruped_learns_to_follow_a_speed(tmp_path):
    options = {"max_env_steps": "600000", "evaluation.interval": "5"}
    metrics = run_training("examples/quadruped/quadruped.yaml", tmp_path / "run", **options)
    first, *_, last = (each for each in metrics if each["score"] is not None)
    assert last["score"] > first["score"] + 50
    for name, share in (("mean:speed_error", 0.95), ("mean:turn_error", 0.85)):
        assert last["score_info"][name] < share * first["score_info"][name]
