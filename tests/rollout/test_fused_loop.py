"""Compiled step loops play as those in torch do, to the tolerance of the arithmetic."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from playing import rollout
from torch import nn

from es_flipout import (
    Flipout,
    FlipoutES,
    GRUPolicy,
    Independent,
    LinearPolicy,
    LowRank,
    MLPPolicy,
    SigmaAdaptation,
    make_vec,
)
from es_flipout.envs.native import native_maker
from es_flipout.rollout import Episodes, HostPlayer, WorkerPlayer, forward_kernels, fused_rows
from es_flipout.rollout.fused_loop import FusedLoop
from es_flipout.rollout.fused_rows import is_fusible
from es_flipout.rollout.host_loop import HostLoop
from es_flipout.rollout.make_loop import loop_of_members

P = 8
TASK = "HalfCheetah-v5"
FLIPOUT = Flipout()
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
STEPS = {torch.float64: 12, torch.float32: 4}
"""Steps after which returns differ by no more than this, relatively: rounding, 1e-16 or 1e-7, and what the
physics makes of it. Since actions are float32 in both, float64 seldom makes any difference at all."""


def envs(num_envs, dtype, *, env_id=TASK, steps=None, **kwargs):
    limit = steps or STEPS[dtype]
    make = partial(
        make_vec, env_id, num_envs, dtype=dtype, max_episode_steps=limit, info=False, threads=1, **kwargs
    )
    return make(), make(fused=False)


def population_of(
    env,
    family=FLIPOUT,
    *,
    antithetic=True,
    policy_class=MLPPolicy,
    sigma=0.3,
    members=P,
    frozen=(),
    adapts=False,
    **kwargs,
):
    generator = torch.Generator().manual_seed(0)
    if policy_class is MLPPolicy:
        kwargs.setdefault("hidden_sizes", (9, 5))
    policy = policy_class(
        env.single_observation_space, env.single_action_space, generator=generator, **kwargs
    ).to(env.dtype)
    if policy.normalizer is not None:
        policy.normalizer.mean += 0.1
        policy.normalizer.count += 100
        policy.normalizer.m2 += 50 + torch.arange(len(policy.normalizer.m2))
    with torch.no_grad():
        for parameter in policy.parameters():  # far from the middle of the range, and with biases
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    for name in frozen:
        policy.get_parameter(name).requires_grad_(False)
    es = FlipoutES(policy, population_size=members, sigma=sigma, perturbation=family, antithetic=antithetic)
    if adapts:
        es.sigma_adaptation = SigmaAdaptation("pgpe")
        scales = {name: 0.5 + torch.rand_like(each) for name, each in policy.named_parameters()}
        es.load_state_dict(es.state_dict() | {"sigma_scales": scales})
    return es.ask()


def assert_alike(one, other, tolerance):
    np.testing.assert_allclose(one.returns.numpy(), other.returns.numpy(), rtol=tolerance, atol=tolerance)
    assert torch.equal(one.lengths, other.lengths)
    assert one.failures == other.failures
    assert torch.equal(one.observations.count, other.observations.count)
    for name in ("mean", "variance"):
        given, expected = (getattr(each.observations, name).numpy() for each in (one, other))
        np.testing.assert_allclose(given, expected, rtol=tolerance, atol=tolerance)


def assert_same(one, other):
    assert torch.equal(one.returns, other.returns)
    assert torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.observations.mean, other.observations.mean)
    assert torch.equal(one.observations.m2, other.observations.m2)


KINDS = {
    "flipout": {},
    "gaussian": {"family": Flipout(base="gaussian")},
    "two bases": {"family": Flipout(num_bases=2)},
    "two gaussian bases": {"family": Flipout(num_bases=2, base="gaussian"), "antithetic": False},
    "rank 1": {"family": LowRank(1)},
    "rank 3": {"family": LowRank(3), "antithetic": False},
    "independent": {"family": Independent()},
    "sigmas of its own": {"family": Flipout(num_bases=2, base="gaussian"), "adapts": True},
    "independent, sigmas of its own": {"family": Independent(), "adapts": True},
    "independent, no pairs": {"family": Independent(), "antithetic": False},
    "linear": {"policy_class": LinearPolicy},
    "linear of rank 1": {"policy_class": LinearPolicy, "family": LowRank(1)},
    "relu": {"activation": "relu"},
    "elu": {"activation": "elu"},
    "silu": {"activation": "silu", "family": LowRank(1)},
    "rescaled": {"action_bounds": "rescale"},
    "clipped": {"action_bounds": "clip"},
    "not normalized": {"normalize_observations": False},
    "clipped observations": {"observation_clip": 0.5},
    "frozen weight": {"frozen": ["network.0.weight"]},
    "frozen bias": {"frozen": ["network.2.bias"]},
    "frozen weight of rank 3": {"frozen": ["network.2.weight"], "family": LowRank(3)},
    "frozen layer of dense noise": {
        "frozen": ["network.0.weight", "network.0.bias"],
        "family": Independent(),
    },
    "frozen weights": {"frozen": ["network.0.weight", "network.2.weight", "network.4.weight"]},
    "one wide layer": {"hidden_sizes": (40,)},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_members_play_as_in_torch(kind, dtype):
    fused, eager = envs(4, dtype)
    population = population_of(fused, **KINDS[kind])
    assert type(loop_of_members(fused, population)) is FusedLoop
    assert type(loop_of_members(eager, population)) is HostLoop
    seeds = np.arange(2 * P).reshape(P, 2)
    found, expected = (rollout(HostPlayer(env), population, seeds) for env in (fused, eager))
    assert_alike(found, expected, TOLERANCE[dtype])
    assert len(found.returns.unique()) == 2 * P


def test_noise_that_would_take_too_much_memory_is_drawn_as_members_come(monkeypatch):
    fused, _ = envs(4, torch.float64)
    population = population_of(fused, Flipout(num_bases=2))
    expected = rollout(HostPlayer(fused), population, range(P))
    monkeypatch.setattr(fused_rows, "MAX_BYTES", 0)
    assert_same(rollout(HostPlayer(fused), population, range(P)), expected)


def test_without_sigma_all_members_are_the_center():
    fused, eager = envs(3, torch.float64)
    population = population_of(fused, sigma=1e-300)
    found = rollout(HostPlayer(fused), population, [5] * P)
    assert len(found.returns.unique()) == 1
    assert_alike(found, rollout(HostPlayer(eager), population, [5] * P), 1e-9)


@pytest.mark.parametrize("limit", [None, 7])
def test_episodes_that_end_at_different_times(limit):
    fused, eager = envs(4, torch.float64, env_id="InvertedPendulum-v5", steps=25)
    population = population_of(fused, members=30, hidden_sizes=(9, 5))
    found, expected = (
        rollout(HostPlayer(env), population, range(100, 130), episode_limit=limit) for env in (fused, eager)
    )
    assert_alike(found, expected, 1e-9)
    assert len(found.lengths.unique()) > 2
    assert found.lengths.max() == limit or limit is None
    assert found.env_steps <= found.spent_steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_are_independent_of_the_number_of_envs(dtype):
    played = []
    for num_envs in (1, 3, 8):
        fused, _ = envs(num_envs, dtype)
        population = population_of(fused, Flipout(num_bases=2), members=12)
        played.append(rollout(HostPlayer(fused), population, range(12)))
    for each in played[1:]:
        assert_same(each, played[0])


def test_workers_give_what_one_process_gives():
    fused, _ = envs(5, torch.float32)
    population = population_of(fused, members=12)
    make_env = partial(native_maker(TASK, max_episode_steps=STEPS[torch.float32]), 2, info=False, threads=1)
    with closing(WorkerPlayer.of_envs(population.policy, make_env, 2)) as player:
        found = rollout(player, population, range(12))
    assert_same(found, rollout(HostPlayer(fused), population, range(12)))


def test_several_environments_at_once_give_what_one_gives():
    (one, _), (other, _) = envs(3, torch.float32), envs(2, torch.float32)
    population = population_of(one, members=12)
    expected = rollout(HostPlayer(one), population, range(12))
    assert_same(rollout(HostPlayer(one, other), population, range(12)), expected)


def test_what_fails_is_counted_alike():
    fused, eager = envs(3, torch.float64)
    population = population_of(fused, members=8)
    start = fused.task.initial_state

    def initial_state(rng):
        qpos, qvel = start(rng)
        number = rng.integers(3)
        if number == 0:
            raise ValueError("no start")
        return qpos * (np.nan if number == 1 else 1), qvel

    for env in (fused, eager):
        env.task.initial_state = initial_state
    found, expected = (rollout(HostPlayer(env), population, range(8)) for env in (fused, eager))
    assert found.failures == expected.failures
    assert len(found.failures) == 2
    np.testing.assert_allclose(found.returns.numpy(), expected.returns.numpy(), rtol=1e-9)
    assert 0 < found.returns.isnan().sum() < 8
    assert torch.equal(found.observations.count, expected.observations.count)


def raising_after(steps):
    """Returns a `should_stop` that raises when it has been asked so often."""
    left = iter([False] * steps)
    return lambda: next(left)


def test_a_play_after_one_that_broke_off_begins_anew():
    fused, _ = envs(3, torch.float32)
    player, population = HostPlayer(fused), population_of(fused)
    first = rollout(player, population, range(P))
    with pytest.raises(StopIteration):
        rollout(player, population, range(P), should_stop=raising_after(2))
    assert_same(rollout(player, population, range(P)), first)


# The forward.


def test_tanh_is_that_of_numpy_for_all_float32_numbers():
    bits = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(-10, 10, 100_003, dtype=np.float32)])
    found, known = x.copy(), ~np.isnan(x)
    forward_kernels.tanh(found, len(found))
    assert np.isnan(found[~known]).all()
    assert np.abs(found[known] - np.tanh(x[known].astype(np.float64))).max() < 5e-7
    assert np.abs(found[known]).max() == 1
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 30, -30], np.float32)
    forward_kernels.tanh(special, 5)
    assert special.tolist() == [1, -1, 0, 0, 1, -30]
    assert np.signbit(special[3])


def test_tanh_of_float64_numbers_is_the_librarys():
    x = np.linspace(-5, 5, 1001)
    found = x.copy()
    forward_kernels.tanh(found, len(found))
    np.testing.assert_allclose(found, np.tanh(x), rtol=1e-15)


def box(size):
    return spaces.Box(-1, 1, (size,), np.float32)


def test_which_policies_are_compiled():
    observations, actions = box(100), box(3)
    assert is_fusible(LinearPolicy(observations, actions))
    assert is_fusible(MLPPolicy(observations, actions, hidden_sizes=(64, 64)))
    assert is_fusible(MLPPolicy(box(256), actions, hidden_sizes=(126,)))
    assert not is_fusible(MLPPolicy(box(256), actions, hidden_sizes=(127,)))  # 32,893 weights
    assert not is_fusible(LinearPolicy(observations, spaces.Discrete(3)))
    assert not is_fusible(LinearPolicy(observations, spaces.MultiDiscrete([2, 2])))
    assert not is_fusible(GRUPolicy(observations, actions))
    assert not is_fusible(nn.Linear(3, 2))


def test_policies_of_the_users_own_are_not_compiled():
    class Twice(MLPPolicy):
        def forward(self, observations):
            return 2 * super().forward(observations)

    policy = MLPPolicy(box(3), box(2))
    assert is_fusible(policy)
    policy.network[0].register_forward_hook(lambda *_: None)
    assert not is_fusible(policy)
    assert not is_fusible(Twice(box(3), box(2)))
    policy = MLPPolicy(box(3), box(2))
    policy.network[1] = nn.Sigmoid()
    assert not is_fusible(policy)


@pytest.mark.parametrize("kwargs", [{"fused": False}, {"info": True}, {"engine": "gymnasium"}], ids=str)
def test_other_environments_take_the_loop_in_torch(kwargs):
    env = make_vec("InvertedPendulum-v5", 2, **{"info": False, "threads": 1, **kwargs})
    policy = LinearPolicy(env.single_observation_space, env.single_action_space)
    population = FlipoutES(policy, population_size=4, sigma=0.1).ask()
    assert type(loop_of_members(env, population)) is HostLoop


def test_a_float64_policy_on_float32_observations_is_compiled_too():
    fused, eager = envs(2, torch.float32)
    policy = MLPPolicy(
        fused.single_observation_space, fused.single_action_space, hidden_sizes=(9, 5)
    ).double()
    population = FlipoutES(policy, population_size=4, sigma=0.3).ask()
    found, expected = (rollout(HostPlayer(env), population, range(4)) for env in (fused, eager))
    assert_alike(found, expected, 1e-9)


def test_an_episode_table_may_join_while_others_play():
    fused, _ = envs(4, torch.float32)
    population = population_of(fused)
    loop = loop_of_members(fused, population)
    one, other = (Episodes.of_population(range(first, first + P)) for first in (0, 50))
    for table in (one, other):
        table.observation_size = fused.single_observation_space.shape[0]
    loop.add(one)
    for _ in range(2):
        loop.step()
    loop.add(other)
    loop.run(lambda: False)
    for table, first in ((one, 0), (other, 50)):
        expected = rollout(HostPlayer(fused), population, range(first, first + P))
        np.testing.assert_array_equal(table.returns, expected.returns.numpy().ravel())
