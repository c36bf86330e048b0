"""StackedPolicy: what the policy inside does on Gymnasium's stacked observations, by every player."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from torch import nn

from es_flipout import (
    BaselinePlayer,
    CNNPolicy,
    Episodes,
    Flipout,
    FlipoutES,
    GRUPolicy,
    GymnasiumRollout,
    HostPlayer,
    Independent,
    LinearPolicy,
    LowRank,
    LSTMPolicy,
    MLPPolicy,
    ObservationNormalizer,
    RunningStatistics,
    StackedPolicy,
    evaluate,
    make_vec,
    stacked_space,
)
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.policies import make_policy
from es_flipout.rollout import DevicePlayer, Scorer
from es_flipout.rollout.mlp_rows import rows_are_independent
from es_flipout.rollout.recurrence import RecurrentState

K, MEMBERS = 3, 8
VECTORS = [MLPPolicy, LinearPolicy, GRUPolicy, LSTMPolicy]


class Own(nn.Module):
    """Normalizes by itself, and runs under vmap."""

    def __init__(self, observation_space, action_space, generator=None):
        super().__init__()
        self.space = observation_space
        self.normalizer = ObservationNormalizer(observation_space.shape[0])
        self.layers = nn.Sequential(nn.Linear(observation_space.shape[0], 5), nn.Linear(5, 1))
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, observations):
        return self.layers(self.normalizer(observations)).tanh().clamp(-2, 2)


def pendulum():
    return gym.make("Pendulum-v1", max_episode_steps=25)


def stacked_pendulum():
    return FlattenObservation(FrameStackObservation(pendulum(), K))


def pair(policy_class, dtype=torch.float32):
    """Returns a policy for stacked observations, and the same in a `StackedPolicy`; both have seen some."""
    with closing(pendulum()) as env:
        space, actions = env.observation_space, env.action_space
    plain, inside = (
        policy_class(stacked_space(space, K), actions, generator=torch.Generator().manual_seed(0)).to(dtype)
        for _ in range(2)
    )
    stacked, also_stacked = (StackedPolicy(each, space, K) for each in (inside, plain))
    seen = RunningStatistics(3)
    seen.update(2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) + 1)
    stacked.normalizer.merge(seen)
    also_stacked.normalizer.merge(seen)
    return plain, stacked


def population_of(policy, family=Flipout()):  # noqa: B008 - it is frozen
    return FlipoutES(policy, population_size=MEMBERS, sigma=0.3, perturbation=family).ask()


@pytest.mark.parametrize("policy_class", [*VECTORS, Own])
@pytest.mark.parametrize("family", [Flipout(num_bases=2), LowRank(1), Independent()], ids=str)
def test_members_act_as_on_the_stacked_observations_of_gymnasium(policy_class, family):
    plain, stacked = pair(policy_class)
    expected = evaluate(population_of(plain, family), GymnasiumVectorEnv(stacked_pendulum, 3), episodes=2)
    found = evaluate(population_of(stacked, family), GymnasiumVectorEnv(pendulum, 5), episodes=2)
    assert len(set(expected.returns)) == 2 * MEMBERS
    if policy_class is Own:  # under vmap, rows may round differently in other company
        np.testing.assert_allclose(found.returns, expected.returns, rtol=1e-4)
    else:
        assert np.array_equal(found.returns, expected.returns)
    # Moments are of single observations; those of the wrapper are three times over of nearly the same ones.
    moments, tripled = found.observations(), expected.observations()
    assert moments.mean.shape == (3,)
    torch.testing.assert_close(moments.mean, tripled.mean[6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy_class", VECTORS)
def test_actions_are_those_of_the_policy_inside_step_by_step(policy_class):
    plain, stacked = pair(policy_class)
    state, plain_state = (
        RecurrentState(each, 1) if hasattr(each, "initial_state") else None for each in (stacked, plain)
    )
    with closing(pendulum()) as single, closing(stacked_pendulum()) as env:
        for seed in (4, 5):  # the second episode knows nothing of the first
            state.reset(torch.tensor([0]))
            if plain_state is not None:
                plain_state.reset(torch.tensor([0]))
            observation, _ = single.reset(seed=seed)
            observations, _ = env.reset(seed=seed)
            for _ in range(6):
                row = torch.from_numpy(observations)[None]
                expected = plain(row) if plain_state is None else plain_state.act(plain, row, slice(None))
                action = state.act(stacked, torch.from_numpy(observation)[None], slice(None))
                assert torch.equal(action, expected)
                observation = single.step(action[0].detach().numpy())[0]
                observations = env.step(action[0].detach().numpy())[0]


@pytest.mark.parametrize("policy_class", [MLPPolicy, GRUPolicy])
def test_the_baseline_and_the_score_agree(policy_class):
    plain, stacked = pair(policy_class, torch.float64)
    seeds = list(range(MEMBERS))
    population = population_of(stacked)
    side_by_side = HostPlayer(GymnasiumVectorEnv(pendulum, 3, dtype=torch.float64)).play(
        population, Episodes.of_population(seeds)
    )
    with closing(BaselinePlayer(stacked, partial(GymnasiumRollout, pendulum), num_workers=1)) as player:
        alone = player.play(population, Episodes.of_population(seeds))
    np.testing.assert_allclose(alone.returns, side_by_side.returns, rtol=1e-9)
    scores = []
    for policy, make in ((plain, stacked_pendulum), (stacked, pendulum)):
        with closing(Scorer(GymnasiumVectorEnv(make, 3, dtype=torch.float64))) as scorer:
            scorer_policy = policy if policy is stacked else plain
            scores.append(scorer.score(scorer_policy, seed=3).returns.tolist())
    assert scores[0] == scores[1]


@pytest.mark.parametrize("policy_class", [MLPPolicy, LSTMPolicy])
def test_a_device_agrees_with_the_host(policy_class):
    env = make_vec("InvertedPendulum-v5", 4, engine="warp", info=False, max_episode_steps=15)
    space = env.single_observation_space
    inside = policy_class(stacked_space(space, K), env.single_action_space, hidden_sizes=(8,))
    population = population_of(StackedPolicy(inside, space, K))
    found, expected = (
        player.play(population, Episodes.of_population(np.arange(MEMBERS)))
        for player in (DevicePlayer(env), HostPlayer(env))
    )
    np.testing.assert_allclose(found.returns, expected.returns, rtol=1e-6)
    torch.testing.assert_close(found.observations().m2, expected.observations().m2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy_class", [*VECTORS, Own])
def test_members_are_the_dense_ones(policy_class):
    _, stacked = pair(policy_class)
    population = population_of(stacked)
    x = torch.randn(MEMBERS, 3, generator=torch.Generator().manual_seed(2))
    state = stacked.initial_state(MEMBERS)
    actions, following = population(x, state)
    actions, _ = population(2 * x, following)
    for member in range(MEMBERS):
        module, own = population.module(member), stacked.initial_state(1)
        _, own = module(x[member : member + 1], own)
        expected, _ = module(2 * x[member : member + 1], own)
        torch.testing.assert_close(actions[member], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kwargs", "axis"),
    [((16, 12, 3), {}, 2), ((2, 12, 16), {}, 0), ((8, 8, 8), {"channel_order": "last"}, 2)],
    ids=str,
)
def test_images_are_stacked_along_their_channels(shape, kwargs, axis):
    space, actions = spaces.Box(0, 255, shape, np.uint8), spaces.Box(-1.0, 1.0, (2,), np.float32)
    generator = torch.Generator().manual_seed(0)
    policy = make_policy("cnn", space, actions, kwargs=kwargs, observation_stack=K, generator=generator)
    assert isinstance(policy.policy, CNNPolicy)
    assert policy.normalizer is None
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, *shape))).float()
    state = policy.initial_state(1)
    for step in range(4):
        action, state = policy(images[step], state)
        frames = [images[max(step - back, 0), 0] for back in reversed(range(K))]
        assert torch.equal(action, policy.policy(torch.cat(frames, dim=axis)[None]))


def test_other_arrays_are_stacked_along_their_first_axis(monkeypatch):
    class Seen(nn.Module):
        def __init__(self, observation_space, action_space):
            super().__init__()
            self.space = observation_space
            self.layer = nn.Linear(1, 1)

        def forward(self, observations):
            return observations

    monkeypatch.setattr("es_flipout.policies.factory.import_class", lambda *_: Seen)
    for shape, stacked in (((2, 5), (6, 5)), ((9, 9, 9), (27, 9, 9)), ((9, 9, 4), (9, 9, 12))):
        policy = make_policy(
            "mine:Seen", spaces.Box(-1.0, 1.0, shape), spaces.Discrete(2), observation_stack=K
        )
        assert policy.policy.space.shape == stacked
        seen, _ = policy(torch.zeros(1, *shape), policy.initial_state(1))
        assert seen.shape == (1, *stacked)


def test_a_stack_of_one_is_the_policy_itself():
    with closing(pendulum()) as env:
        policy = make_policy("mlp", env.observation_space, env.action_space, observation_stack=1)
    assert type(policy) is MLPPolicy


def test_moments_are_the_same_for_each_of_the_observations():
    _, stacked = pair(MLPPolicy)
    normalizer = stacked.policy.normalizer
    seen = RunningStatistics(3)
    seen.update(torch.randn(20, 3))
    before = normalizer.statistics()
    stacked.normalizer.merge(seen)
    assert normalizer.count == 70
    assert torch.equal(normalizer.mean, normalizer.mean[:3].repeat(K))
    assert torch.equal(normalizer.m2, normalizer.m2[:3].repeat(K))
    assert not torch.equal(normalizer.mean, before.mean)


def test_rows_are_independent_if_those_of_the_policy_inside_are():
    assert all(rows_are_independent(pair(policy_class)[1]) for policy_class in VECTORS)
    assert not rows_are_independent(pair(Own)[1])


def test_what_cannot_be_stacked_is_refused():
    vector = spaces.Box(-1.0, 1.0, (3,))
    with pytest.raises(ValueError, match="at least 2 observations, got 1"):
        StackedPolicy(nn.Linear(3, 1), vector, 1)
    with pytest.raises(ValueError, match=r"of shape \(\) cannot be stacked along axis 0"):
        stacked_space(spaces.Box(-1.0, 1.0, ()), 2)
    with pytest.raises(ValueError, match=r"of shape \(3,\) cannot be stacked along axis 1"):
        StackedPolicy(nn.Linear(6, 1), vector, 2, axis=1)
    with pytest.raises(ValueError, match="Discrete observations are not supported"):
        stacked_space(spaces.Discrete(3), 2)
