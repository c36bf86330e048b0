"""Tasks with a state, controls and randomization: the same bits, or the same numbers, whoever plays them."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from playing import rollout
from ranks import RankProcesses

from es_flipout import FlipoutES, register_task
from es_flipout.envs import make_vec
from es_flipout.perturbations import Flipout
from es_flipout.policies import GRUPolicy, MLPPolicy
from es_flipout.population import Population
from es_flipout.rollout import DevicePlayer, Episodes, HostPlayer, RankPlayer, WorkerPlayer, reset_seeds
from tests.robots import Robot

ROBOT = "tests.robots:Robot-v0"
MEMBERS = 16


@pytest.fixture(scope="module")
def three():
    ranks = RankProcesses(3)
    yield ranks
    ranks.close()


def make_population(env, policy_class=MLPPolicy, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    policy = policy_class(
        env.single_observation_space, env.single_action_space, hidden_sizes=(8,), generator=generator
    ).to(device)
    return FlipoutES(policy, population_size=MEMBERS, sigma=0.3, perturbation=Flipout(2)).ask()


def bits(played):
    moments = played.observations
    numbers = [moments.count, moments.mean, moments.m2, played.returns, played.lengths]
    return [each.numpy().tobytes() for each in numbers]


SEEDS = reset_seeds(MEMBERS, 2)
MAKE = partial(make_vec, ROBOT, info=False, threads=1, randomize=True)
PLAYERS = {
    "compiled": (MLPPolicy, {}),
    "compiled hooks": (GRUPolicy, {}),
    "torch": (MLPPolicy, {"fused": False}),
    "pool": (MLPPolicy, {"engine": "mjdata_pool"}),
}


SLOW = ("compiled hooks", "torch")


@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in PLAYERS]
)
def test_returns_are_equal_to_the_last_bit_whoever_plays(three, kind):
    policy_class, options = PLAYERS[kind]
    found = {}
    for num_envs in (1, 3, 8):
        env = MAKE(num_envs, **options)
        assert (env.fused is None) == (kind == "torch"), env.not_fused
        population = make_population(env, policy_class)
        found[num_envs] = rollout(HostPlayer(env), population, SEEDS)
        env.close()
    assert found[1].returns.std() > 0.1
    assert found[1].lengths.unique().numel() > 3
    assert bits(found[1]) == bits(found[3]) == bits(found[8])
    workers = WorkerPlayer.of_envs(population.policy, partial(MAKE, 3, **options), 2)
    with closing(workers):
        assert bits(rollout(workers, population, SEEDS)) == bits(found[1])

    def play(ranks):
        env = partial(make_vec, ROBOT, info=False, threads=1, randomize=True)(2, **options)
        episodes = Episodes.of_population(SEEDS)
        RankPlayer(HostPlayer(env), ranks).play(make_population(env, policy_class), episodes)
        return episodes.returns.tobytes()

    assert three.do(play) == [found[1].returns.numpy().tobytes()] * 3


def test_members_of_a_pair_share_model_pushes_and_noise():
    env = MAKE(2)
    policy = make_population(env).policy
    parameters = dict(policy.named_parameters())
    noise = Flipout().sample(parameters, 2, torch.Generator().manual_seed(1), antithetic=True)
    returns = rollout(HostPlayer(env), Population(policy, noise, 1e-30), [[5], [5]]).returns
    assert returns[0] == returns[1]
    nominal = rollout(
        HostPlayer(make_vec(ROBOT, 2, info=False)), Population(policy, noise, 1e-30), [[5], [5]]
    )
    assert nominal.returns[0] != returns[0]


@pytest.mark.parametrize("randomize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loop_of_the_device_finds_what_the_host_finds(device, randomize):
    env = MAKE(6, engine="warp", device=device, randomize=randomize)
    population = make_population(env, device=device)
    expected = rollout(HostPlayer(env), population, SEEDS, episode_limit=20)
    found = rollout(DevicePlayer(env), population, SEEDS, episode_limit=20)
    tolerance = 1e-5 if device == "cpu" else 1e-3
    torch.testing.assert_close(found.returns, expected.returns, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.lengths, expected.lengths)
    for name in ("mean", "variance"):
        mine, theirs = (getattr(each.observations, name) for each in (found, expected))
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    if device != "cpu":
        return  # its generator draws another noise
    on_cpu = rollout(HostPlayer(MAKE(6, randomize=randomize)), make_population(env), SEEDS, episode_limit=3)
    short = rollout(DevicePlayer(env), population, SEEDS, episode_limit=3)
    torch.testing.assert_close(short.returns, on_cpu.returns, rtol=2e-3, atol=2e-3)


class Springy(Robot):
    """Its controls follow what its sensors and its feet say."""

    def control(self, fields, actions):
        sensors = fields["sensordata"]
        return actions + 0.5 * sensors[:, self.velocity][:, 1:] + sensors[:, self.feet]


register_task("Springy-v0", Springy, max_episode_steps=60)


def test_controls_on_the_device_see_the_start_of_their_episode(device):
    env = make_vec("Springy-v0", 4, info=False, engine="warp", device=device)
    population = make_population(env, device=device)
    expected = rollout(HostPlayer(env), population, SEEDS, episode_limit=3)
    found = rollout(DevicePlayer(env), population, SEEDS, episode_limit=3)
    tolerance = 1e-5 if device == "cpu" else 1e-3
    torch.testing.assert_close(found.returns, expected.returns, rtol=tolerance, atol=tolerance)


def test_nothing_of_a_robot_waits_for_a_value_or_moves_in_memory():
    from test_device import Untouched

    from es_flipout.rollout.device_loop import DeviceLoop, SeededStates, Starts

    env = MAKE(6, engine="warp")
    task, population = env.checked_task, make_population(env)
    starts = Starts.compute(env.engine, task, SeededStates.draw(task, SEEDS.ravel()), torch.float32)
    loop = DeviceLoop(env.engine, task, population, starts, np.repeat(np.arange(MEMBERS), 2), 25)
    env.engine.advance(env.task.frame_skip)
    loop.between_steps()

    def places():
        kept = [*loop._state.fields.values(), loop._state.keys, *loop._inputs.values(), loop._action]
        return [each.data_ptr() for each in (*kept, *env.engine._varied.values())]

    before = places()
    assert len(before) > 15
    for _ in range(3):
        env.engine.advance(env.task.frame_skip)
        with Untouched():
            loop.between_steps()
    assert places() == before
