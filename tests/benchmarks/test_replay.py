"""What is recorded of a physics engine is what it was asked for, by episode as well."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.speed.es_train import last_metrics
from benchmarks.speed.replay import PhysicsCalls


class Engine:
    """Does nothing, in two simulations."""

    num_envs = 2

    def reset(self, ids, qpos, qvel, model):
        pass

    def step(self, ctrl, num_substeps, ids=None):
        pass


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def reset(engine: Engine, *envs: int, start: float) -> None:
    state = start + np.array(envs, dtype=np.float64)[:, np.newaxis]
    engine.reset(ids(*envs), state, -state)


def test_episodes_are_what_each_simulation_does_from_reset_to_reset():
    engine, ctrl = Engine(), torch.zeros(2, 1)
    calls = PhysicsCalls.record(engine)
    reset(engine, 0, 1, start=10.0)
    engine.step(ctrl.copy_(torch.tensor([[1.0], [2.0]])), 5)
    reset(engine, 0, start=20.0)
    engine.step(ctrl.copy_(torch.tensor([[3.0], [4.0]])), 5)  # in the same memory
    engine.step(ctrl.copy_(torch.tensor([[5.0], [6.0]])), 5, ids(1))
    reset(engine, 0, start=30.0)  # never stepped
    engine.step(ctrl, 5, ids(1))
    assert (calls.env_steps, calls.num_resets, calls.num_substeps) == (6, 4, 5)
    found = [(e.qpos.item(), e.qvel.item(), e.ctrl[:, 0].tolist()) for e in calls.episodes()]
    assert found == [(10.0, -10.0, [1.0]), (11.0, -11.0, [2.0, 4.0, 6.0, 6.0]), (20.0, -20.0, [3.0])]


def test_the_last_metrics_are_those_of_the_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) is None
    for text, expected in (("", None), ('{"a": 1', None), ('{"a": 1}\n', 1), ('{"a": 1}\n{"a": 2}\n{"a"', 2)):
        path.write_text(text)
        last = last_metrics(path)
        assert (last and last["a"]) == expected
