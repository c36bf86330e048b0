"""`make_act` is held against the policy itself, run by torch on the same observations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.normalization import RunningStatistics
from es_flipout.policies import CNNPolicy, GRUPolicy, LinearPolicy, LSTMPolicy, MLPPolicy
from es_flipout.policies.activations import ACTIVATIONS
from es_flipout.rollout.single_policy import make_act

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (5,), np.float64)
LOW, HIGH = np.array([-0.5, -1.0, 3.0]), np.array([0.5, 2.0, 3.5])
ACTIONS = {
    "box32": spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32)),
    "box64": spaces.Box(LOW, HIGH, dtype=np.float64),
    "discrete": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 5, 3], start=[0, -1, 5]),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def _as_in_a_worker():
    with torch.inference_mode(), np.errstate(all="ignore"):
        yield


def generator():
    return torch.Generator().manual_seed(0)


def random(policy, dtype=torch.float64):
    """Gives a policy weights that make its actions differ widely, biases too."""
    draws = generator()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=draws)
    return policy.to(dtype)


def rows(dtype, count=40):
    """Returns observations, some of them far out."""
    values = np.random.default_rng(0).normal(0.2, 0.6, (count, 5)) * np.array([1, 2, 0.3, 1, 1])
    values[::7] *= 20
    return values.astype(str(dtype).removeprefix("torch."))


def merge_moments(policy):
    seen = RunningStatistics(5)
    seen.update(torch.from_numpy(rows(torch.float64, 500)))
    policy.normalizer.merge(seen)


def assert_acts_as_the_policy(policy, space, dtype):
    act = make_act(policy, space)
    observations = rows(dtype)
    expected = policy(torch.from_numpy(observations)).numpy()
    actions = [act(row) for row in observations]
    for action, row in zip(actions, expected, strict=True):
        assert np.shape(action) == space.shape
        if isinstance(space, spaces.Discrete):
            assert type(action) is int
        else:
            assert action.dtype == space.dtype
        if isinstance(space, spaces.Box):
            tolerance = 1e-12 if space.dtype == np.float64 == row.dtype else 1e-5
            np.testing.assert_allclose(action, row, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(action, row)
        assert space.contains(action)
    assert len(np.unique(actions, axis=0)) > 1
    return np.array(actions)


@DTYPES
@pytest.mark.parametrize("normalizer", ["none", "fresh", "merged"])
@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_every_mlp_acts_as_in_torch(space, normalizer, dtype):
    kinds = [(LinearPolicy, {})]
    kinds += [(MLPPolicy, {"hidden_sizes": (6, 7), "activation": each}) for each in ACTIVATIONS]
    bounds = ["rescale", "clip"] if isinstance(space, spaces.Box) else ["rescale"]
    different = []
    for (kind, options), action_bounds in itertools.product(kinds, bounds):
        policy = kind(
            OBSERVATIONS,
            space,
            action_bounds=action_bounds,
            normalize_observations=normalizer != "none",
            observation_clip=1.5,
            generator=generator(),
            **options,
        )
        random(policy, dtype)
        if normalizer == "merged":
            merge_moments(policy)
        different.append(assert_acts_as_the_policy(policy, space, dtype))
    for one, other in itertools.combinations(different, 2) if isinstance(space, spaces.Box) else ():
        assert not np.array_equal(one, other)


def test_a_plain_mlp_acts_without_torch(monkeypatch):
    policy = random(MLPPolicy(OBSERVATIONS, ACTIONS["box32"]))
    merge_moments(policy)
    row = rows(torch.float64)[0]
    expected = policy(torch.from_numpy(row)).numpy()
    monkeypatch.setattr(MLPPolicy, "forward", None)
    np.testing.assert_allclose(make_act(policy, ACTIONS["box32"])(row), expected, rtol=1e-6)


class Doubled(MLPPolicy):
    """Acts on observations twice as large."""

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(2 * observations)


class Shifted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5


class LastHalf(nn.Module):
    """A head of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(LOW) + 0.1 * torch.sigmoid(x)


def _own_forward(policy):
    network = policy.network
    policy.forward = lambda observations: torch.tensor(HIGH) - 0.1 * torch.sigmoid(network(observations))
    return policy


def _hooked(policy):
    policy.network[0].register_forward_hook(lambda module, args, output: output + 0.5)
    return policy


def _with(name, make):
    def change(policy):
        module, _, last = name.rpartition(".")
        setattr(policy.get_submodule(module), last, make())
        return random(policy)

    return change


CHANGES = {
    "own-forward": _own_forward,
    "hook": _hooked,
    "own-layer": _with("network.0", lambda: Shifted(5, 6)),
    "no-bias": _with("network.0", lambda: nn.Linear(5, 6, bias=False)),
    "own-activation": _with("network.1", nn.GELU),
    "own-head": _with("head", LastHalf),
    "own-normalizer": _with("normalizer", lambda: nn.Hardtanh(-3, 3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_somebody_has_changed_is_heeded(change):
    policy = MLPPolicy(OBSERVATIONS, ACTIONS["box64"], hidden_sizes=(6,))
    assert_acts_as_the_policy(change(random(policy)), ACTIONS["box64"], torch.float64)


def test_a_subclass_with_a_forward_of_its_own_is_heeded():
    plain, doubled = (random(kind(OBSERVATIONS, ACTIONS["box64"])) for kind in (MLPPolicy, Doubled))
    doubled.load_state_dict(plain.state_dict())
    actions = [assert_acts_as_the_policy(each, ACTIONS["box64"], torch.float64) for each in (plain, doubled)]
    assert not np.allclose(*actions)


@DTYPES
@pytest.mark.parametrize("kind", [GRUPolicy, LSTMPolicy])
def test_a_recurrent_policy_keeps_its_state_from_step_to_step_and_starts_anew_with_each_act(kind, dtype):
    space = ACTIONS["box32"]
    policy = random(kind(OBSERVATIONS, space, hidden_sizes=(6,), recurrent_size=4), dtype)
    merge_moments(policy)
    observations = rows(dtype, 6)
    for _ in range(2):
        act, state = make_act(policy, space), policy.initial_state(1)
        for row in observations:
            expected, state = policy(torch.from_numpy(row).unsqueeze(0), state)
            action = act(row)
            assert action.dtype == space.dtype
            np.testing.assert_allclose(action, expected[0].numpy(), rtol=1e-5)
    # The state matters: the same observation a second time is acted on in another way.
    act = make_act(policy, space)
    assert not np.array_equal(act(observations[0]), act(observations[0]))


def test_a_policy_of_images_acts_as_in_torch():
    images, space = spaces.Box(0, 255, (8, 8, 1), np.uint8), ACTIONS["discrete"]
    policy = CNNPolicy(images, space, generator=generator())
    policy.network[-1].weight.mul_(1000.0)
    shown = 255 * np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)  # one bright pixel each
    act = make_act(policy, space)
    actions = [act(image) for image in shown]
    assert actions == policy(torch.from_numpy(shown)).tolist()
    assert len(set(actions)) > 1
    assert all(type(action) is int for action in actions)
