"""Vector environments of other array libraries: what reaches them, and what they return, by DLPack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import ForeignVectorEnv

SPACES = {
    "box": spaces.Box(-10.0, 10.0, (2,), np.float32),
    "dict": spaces.Dict(
        goal=spaces.Box(-10.0, 10.0, (1,), np.float32), here=spaces.Box(-10.0, 10.0, (1,), np.float32)
    ),
}


class Array:
    """An array of a library that shares memory by DLPack and knows the array API, and nothing else."""

    made = 0

    def __init__(self, tensor):
        self.tensor = tensor

    @classmethod
    def from_dlpack(cls, array):
        cls.made += 1
        return cls(torch.from_dlpack(array))

    def __array_namespace__(self):
        return Array

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array__(self, *_, **__):
        raise AssertionError("a round trip through NumPy")


KINDS = {
    "numpy": (np.ndarray, torch.Tensor.numpy),
    "torch": (torch.Tensor, lambda x: x),
    "other": (Array, Array),
}


class Chase(VectorEnv):
    """Moves by its action; is paid for being close to a goal; ends after six steps."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, kind, space="box", num_envs=4, actions=spaces.Box(-1.0, 1.0, (1,), np.float32)):  # noqa: B008
        self.kind, self.to_kind = KINDS[kind]
        self.num_envs, self.space = num_envs, space
        self.single_observation_space, self.single_action_space = SPACES[space], actions
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.place(torch.device("cpu"))

    def place(self, device):
        """Puts its state on a device."""
        self.here, self.goal = torch.zeros(2, self.num_envs, 1, device=device)
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64, device=device)

    def _observe(self):
        parts = {"goal": self.goal.clone(), "here": self.here.clone()}
        if self.space == "dict":
            return {key: self.to_kind(part) for key, part in parts.items()}
        return self.to_kind(torch.cat(list(parts.values()), dim=1))

    def reset(self, *, seed=None, options=None):
        mask = torch.as_tensor((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        seeds = seed if isinstance(seed, list) else [seed] * self.num_envs
        for i in torch.nonzero(mask).flatten().tolist():
            self.goal[i] = (seeds[i] or 0) % 5 - 2.0
            self.here[i], self.steps[i] = 0.0, 0
        return self._observe(), {}

    def step(self, actions):
        assert isinstance(actions, self.kind)
        tensor = torch.as_tensor(actions) if self.kind is np.ndarray else getattr(actions, "tensor", actions)
        assert tensor.device == self.here.device
        self.here += tensor.reshape(self.num_envs, 1).to(torch.float32)
        self.steps += 1
        rewards = -(self.here - self.goal).abs().flatten()
        over = self.steps >= 6
        return self._observe(), *map(self.to_kind, (rewards, over, torch.zeros_like(over))), {}


def population():
    space, actions = SPACES["box"], spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy = MLPPolicy(space, actions, hidden_sizes=[4], generator=torch.Generator().manual_seed(0))
    return FlipoutES(policy, population_size=8, sigma=0.3).ask()


@pytest.mark.parametrize("space", SPACES)
def test_every_kind_of_array_gives_the_same_fitness(space):
    fitness = [evaluate(population(), Chase(kind, space), reset_seeds=range(8)).fitness for kind in KINDS]
    assert len(set(fitness[0].tolist())) > 4
    for other in fitness[1:]:
        assert torch.equal(other, fitness[0])


@pytest.mark.parametrize("kind", KINDS)
def test_integer_actions_keep_their_dtype(kind):
    env = Chase(kind, actions=spaces.Discrete(3, start=-1))
    wrapped = ForeignVectorEnv(env)
    wrapped.reset(seed=0)
    observations, *_ = wrapped.step(torch.tensor([1, -1, 0, 1]))
    assert observations[:, 1].tolist() == [1.0, -1.0, 0.0, 1.0]


def test_actions_are_handed_over_without_numpy():
    before = Array.made
    wrapped = ForeignVectorEnv(Chase("other"))
    wrapped.reset(seed=0)
    wrapped.step(torch.zeros(4, 1))
    assert Array.made == before + 1


@pytest.mark.parametrize("kind", ["torch", "other"])
@pytest.mark.parametrize("mine", ["cpu", "cuda"])
def test_actions_come_to_the_device_of_the_environment(device, kind, mine):
    mine = mine if device == "cuda" else "cpu"
    env = Chase(kind)
    env.place(torch.device(device))
    wrapped = ForeignVectorEnv(env, device=mine)
    wrapped.reset(seed=[0, 1, 2, 3])
    observations, rewards, *_ = wrapped.step(torch.ones(4, 1, device=mine))
    assert observations.device.type == rewards.device.type == mine
    assert rewards.tolist() == [-3.0, -2.0, -1.0, 0.0]


def test_what_the_environment_overwrites_later_has_been_copied():
    class Overwrites(Chase):
        def _observe(self):
            return self.to_kind(self.here.expand(-1, 2))

    wrapped = ForeignVectorEnv(Overwrites("torch"))
    first, _ = wrapped.reset(seed=0)
    wrapped.step(torch.ones(4, 1))
    assert first.sum() == 0


def test_arrays_that_torch_cannot_share_are_read_by_numpy():
    class Odd(Array):
        def __dlpack__(self, **options):
            raise BufferError("no such dtype")

        def __array__(self, *_, **__):
            return self.tensor.numpy()

    env = Chase("numpy")  # its actions come as NumPy arrays then
    env.to_kind = Odd
    wrapped = ForeignVectorEnv(env)
    wrapped.reset(seed=0)
    observations, rewards, *_ = wrapped.step(torch.ones(4, 1))
    assert observations[:, 1].tolist() == [1.0] * 4
    assert rewards.dtype == torch.float64
