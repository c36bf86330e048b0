"""Compiled tasks step as the hooks say; a task that cannot be compiled runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

from es_flipout.compilation import compiled, source_module
from es_flipout.envs import TASKS, MujocoTask, MujocoVectorEnv, make_vec

N = 5
REWARD_TOLERANCE = dict.fromkeys(["Pusher-v5", "Reacher-v5"], 1e-14)
"""Relative difference of rewards where they are not equal to the last bit: float64 sums and norms are added
up in another order. Everything else is equal to the last bit in all tasks."""


def pair(make, **kwargs):
    """Returns an environment that is compiled, and one that is not."""
    fused, eager = (make(info=False, threads=1, fused=each, **kwargs) for each in (True, False))
    assert fused.fused is not None, fused.not_fused
    assert eager.fused is None
    return fused, eager


def assert_alike(fused, eager, *, steps, tolerance=0.0):
    """Steps both alike, resets some envs meanwhile, and retires others."""
    generator = torch.Generator().manual_seed(3)
    reached = {"ended": 0, "frozen": 0}

    def both(method, *args, **kwargs):
        one, other = (getattr(env, method)(*args, **kwargs) for env in (fused, eager))
        if one is not None:
            assert torch.equal(one[0], other[0])
        return one, other

    both("reset", seed=7)
    for step in range(steps):
        actions = torch.randn(N, *fused.single_action_space.shape, generator=generator)
        before = fused.ended.copy()
        one, other = both("step", actions)
        np.testing.assert_allclose(one[1].numpy(), other[1].numpy(), rtol=tolerance, atol=tolerance)
        assert (one[1].dtype, one[1].shape) == (torch.float64, (N,))
        for given, expected in zip(one[2:4], other[2:4], strict=True):
            assert torch.equal(given, expected)
        assert (one[1][torch.from_numpy(before)] == 0).all()
        reached["frozen"] += before.sum()
        reached["ended"] += (fused.ended & ~before).sum()
        if step % 9 == 8:
            chosen = fused.ended | (np.arange(N) == step % N)
            both("reset", seed=100 * step, options={"reset_mask": chosen})
        if step % 11 == 5:
            both("retire", np.arange(N) == 1)
    for name in fused.checked_task.fields:
        assert torch.equal(fused.engine.fields[name], eager.engine.fields[name])
    assert reached["ended"] > N
    assert reached["frozen"] > 0


@pytest.mark.parametrize("env_id", TASKS)
def test_a_task_steps_as_its_hooks_say(env_id):
    fused, eager = pair(lambda **kwargs: make_vec(env_id, N, **kwargs), max_episode_steps=8)
    assert_alike(fused, eager, steps=30, tolerance=REWARD_TOLERANCE.get(env_id, 0.0))


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "HalfCheetah-v5"])
def test_observations_may_be_float64(env_id):
    make = lambda **kwargs: make_vec(env_id, N, dtype=torch.float64, **kwargs)  # noqa: E731
    fused, eager = pair(make, max_episode_steps=8)
    assert fused.fused.observations.dtype == np.float64
    assert_alike(fused, eager, steps=20)


@torch.inference_mode()
def test_a_task_is_compiled_in_inference_mode_too():
    env = make_vec("HalfCheetah-v5", 2, dtype=torch.float64, info=False, threads=1)
    assert env.not_fused == ""


def test_each_function_is_compiled_once():
    env = make_vec("InvertedPendulum-v5", 3, info=False, threads=1)
    env.reset(seed=0)
    env.step(torch.ones(3, 1))
    assert [len(each.signatures) for each in env.fused.task._functions.values()] == [1, 1]


def test_frozen_envs_are_not_written_to():
    env = make_vec("InvertedPendulum-v5", 3, info=False, threads=1)
    env.reset(seed=0)
    env.retire(np.array([False, True, False]))
    env.fused.observations[1] = 77.0
    env.step(torch.ones(3, 1))
    env.reset(seed=0, options={"reset_mask": np.array([True, False, False])})
    assert (env.fused.observations[1] == 77.0).all()


def test_actions_of_another_dtype_take_the_hooks():
    fused, eager = pair(lambda **kwargs: make_vec("HalfCheetah-v5", 3, dtype=torch.float64, **kwargs))
    actions = torch.full((3, 6), 1 / 3, dtype=torch.float64)
    for env in (fused, eager):
        env.reset(seed=0)
    for _ in range(3):
        for one, other in zip(fused.step(actions)[:4], eager.step(actions)[:4], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kwargs", [{"info": True}, {"fused": False}], ids=str)
def test_it_is_compiled_only_where_it_may_be(kwargs):
    env = make_vec("InvertedPendulum-v5", 1, threads=1, **{"info": False, **kwargs})
    assert env.fused is None
    assert env.not_fused == ""


# Tasks of the user's own.


class Balance(MujocoTask):
    """The pole of InvertedPendulum, with a reward of its own."""

    fields = ("qpos", "qvel")

    def __init__(self):
        super().__init__("inverted_pendulum.xml", 2)

    def initial_state(self, rng):
        return self._uniform_around_start(rng, 0.01)

    def observe(self, fields):
        return fields["qpos"], fields["qvel"]

    def terminated(self, fields):
        return fields["qpos"][:, 1].abs() > 0.2

    def reward(self, before, after, fields, actions):
        return self.of(fields["qpos"], actions), {}

    def of(self, qpos, actions):
        raise NotImplementedError


class Sorted(Balance):
    def of(self, qpos, actions):
        return qpos.sort(dim=1).values[:, 0]


class Branching(Balance):
    def of(self, qpos, actions):
        return qpos[:, 0] if (qpos.abs() < 100).all() else -qpos[:, 0]


class Noisy(Balance):
    def of(self, qpos, actions):
        return qpos[:, 0] + torch.rand(len(qpos))


class NoisyForAll(Balance):
    def of(self, qpos, actions):
        return qpos[:, 0] + torch.rand(())


class Counting(Balance):
    calls = 0

    def of(self, qpos, actions):
        self.calls += 1
        return qpos[:, 0] * self.calls


class InNumPy(Balance):
    def of(self, qpos, actions):
        return torch.from_numpy(np.sin(qpos.numpy()[:, 0]))


class InPlace(Balance):
    def of(self, qpos, actions):
        result = qpos[:, 0].clone()
        result += 1
        return result


class CountingRows(Balance):
    def of(self, qpos, actions):
        return qpos[:, 0] + 1e-6 / len(qpos)


class Uncopied(Balance):
    def of(self, qpos, actions):
        return qpos[:, 0] * 2

    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")


class Raising(Balance):
    """Raises for as many envs as in a trace, or when compared."""

    def of(self, qpos, actions):
        if len(qpos) > 10:
            raise ValueError("too many")
        return qpos[:, 0]


REASONS = {
    Sorted: "aten.sort has no rule here",
    Branching: "reads a value",
    Noisy: "a constant differs from env to env",
    NoisyForAll: "the hooks do something else at each call",
    Counting: "the hooks do something else at each call",
    InNumPy: "numpy reads values",
    InPlace: "add_ changes a tensor in place",
    CountingRows: "rewards as compiled differ from the hook's",
    Uncopied: "TypeError: not to be copied",
    Raising: "Raising.reward: ValueError: too many",
}


@pytest.mark.parametrize("task", REASONS, ids=lambda task: task.__name__)
def test_a_task_that_cannot_be_compiled_runs_as_it_is_written(task):
    env = MujocoVectorEnv(task(), 3, info=False, threads=1, max_episode_steps=4)
    assert env.fused is None
    assert re.search(re.escape(REASONS[task]), env.not_fused), env.not_fused
    env.reset(seed=0)
    rewards = [env.step(torch.ones(3, 1))[1] for _ in range(4)]
    assert all(each.isfinite().all() for each in rewards)
    assert env.ended.all()


class Complete(Balance):
    """Uses much of what a task may use."""

    def __init__(self):
        super().__init__()
        self.weights = torch.tensor([0.3, -1.7, 2.0, 0.1], dtype=torch.float64)

    def observe(self, fields):
        both = torch.cat([fields["qpos"], fields["qvel"]], dim=1)
        return both[:, [2, 0]], torch.sin(both) * self.weights, both.norm(dim=1), fields["qpos"] > 0

    def locate(self, fields):
        return fields["qpos"][:, :1]

    def reward(self, before, after, fields, actions):
        qpos, qvel = fields["qpos"], fields["qvel"]
        upright = torch.where(qpos[:, 1].abs() < 0.1, 1.0, -(qpos[:, 1] ** 2))
        speed = torch.linalg.vector_norm(qvel, dim=-1).clamp(max=5)
        moved = (after - before).squeeze(1) / self.dt
        return upright - 0.1 * speed + moved - actions.square().mean(dim=1), {}


def test_a_task_of_the_users_own_is_compiled():
    make = lambda **kwargs: MujocoVectorEnv(Complete(), N, max_episode_steps=8, **kwargs)  # noqa: E731
    fused, eager = pair(make)
    assert_alike(fused, eager, steps=30, tolerance=1e-12)


def test_a_failing_env_is_told_and_ends_alone():
    fused, eager = pair(lambda **kwargs: make_vec("InvertedPendulum-v5", 3, **kwargs))
    for env in (fused, eager):
        env.reset(seed=0)
        env.engine.fields["qpos"][1] = torch.nan
        env.engine.reset(np.array([1], np.int32), np.full((1, 2), np.nan), np.zeros((1, 2)))
    given, expected = (env.step(torch.zeros(3, 1)) for env in (fused, eager))
    for one, other in zip(given[:4], expected[:4], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert given[4].keys() == expected[4].keys()
    for name in given[4]:
        np.testing.assert_array_equal(given[4][name], expected[4][name])


# Where what is compiled stays.


def test_equal_texts_are_one_module(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = (source_module("value = [1]\n") for _ in range(2))
    assert one is other
    assert one.value == [1]
    assert source_module("value = [2]\n").value == [2]
    assert len(list((tmp_path / "es_flipout").glob("*.py"))) == 2
    assert not list((tmp_path / "es_flipout").glob("*.tmp"))


@pytest.mark.parametrize("obstacle", ["file", "folder", "permission"])
def test_a_cache_that_cannot_be_written_to_is_done_without(monkeypatch, tmp_path, obstacle):
    place = tmp_path / "cache"
    if obstacle == "file":
        place.write_text("")
    elif obstacle == "folder":
        place.mkdir()
        (place / "es_flipout").write_text("")
    else:  # simulated, for tests may run as root

        def deny(*_: object, **__: object) -> None:
            raise PermissionError("read-only")

        monkeypatch.setattr(tempfile, "NamedTemporaryFile", deny)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    module = source_module(f"def length(x):\n    return x + {len(obstacle)}\n")
    assert compiled(module.length)(1) == 1 + len(obstacle)
    assert not list(tmp_path.glob("cache/es_flipout/*"))


PROCESS = """
import sys
import es_flipout
env = es_flipout.make_vec("InvertedPendulum-v5", 2, threads=1, info=False)
env.reset(seed=0)
assert env.fused is not None, env.not_fused
print(sum(sum(each.stats.cache_hits.values()) for each in env.fused.task._functions.values()))
print([name for name in ("torch._dynamo", "torch.distributed.tensor") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes print that compile the same task at once, and one after them; and the cache."""
    cache = tmp_path_factory.mktemp("cache")
    options = {"env": os.environ | {"XDG_CACHE_HOME": str(cache)}, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PROCESS]
    at_once = [subprocess.Popen(command, **options) for _ in range(2)]
    printed = [each.communicate()[0].splitlines() for each in at_once]
    assert [each.returncode for each in at_once] == [0, 0]
    return [*printed, subprocess.run(command, check=True, **options).stdout.splitlines()], cache


def test_processes_share_what_one_of_them_has_compiled(processes):
    printed, cache = processes
    assert printed[-1][0] == "2"
    assert len(list((cache / "es_flipout").glob("*.py"))) == 1
    assert not list((cache / "es_flipout").glob("*.tmp"))


def test_tracing_does_not_import_torchs_compiler(processes):
    assert [each[1] for each in processes[0]] == ["[]"] * 3
