"""`gymnasium.make_vec("es_flipout/...")` is what Gymnasium's own is: NumPy, its info, its wrappers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import ForeignVectorEnv, NumpyVectorEnv, make_vec
from es_flipout.envs.contract import failure_info

NUM_ENVS = 3


def assert_same_info(ours, official, atol):
    assert ours.keys() == official.keys()
    for name, value in official.items():
        assert type(ours[name]) is np.ndarray
        assert ours[name].dtype == value.dtype
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 0), (torch.float32, 1e-6)])
def test_it_is_gymnasiums_own_step_by_step(dtype, atol, mode):
    modes = {} if mode is AutoresetMode.NEXT_STEP else {"autoreset_mode": mode}
    same = {"num_envs": NUM_ENVS, "max_episode_steps": 18}  # some fall before, some do not
    ours = gym.make_vec("es_flipout/Hopper-v5", dtype=dtype, threads=1, **same, **modes)
    official = gym.make_vec("Hopper-v5", vectorization_mode="sync", vector_kwargs=modes, **same)
    assert ours.metadata["autoreset_mode"] is official.metadata["autoreset_mode"] is mode
    assert ours.spec.id == "es_flipout/Hopper-v5"
    (observations, info), (wanted, wanted_info) = ours.reset(seed=3), official.reset(seed=3)
    np.testing.assert_allclose(observations, wanted, rtol=0, atol=atol)
    assert_same_info(info, wanted_info, 1e-12)
    official.action_space.seed(0)
    num_ends = np.zeros(2)
    for _ in range(60):
        actions = official.action_space.sample()
        *results, info = ours.step(actions)
        *wanted, wanted_info = official.step(actions)
        for ours_of_it, its in zip(results, wanted, strict=True):
            assert type(ours_of_it) is np.ndarray
            np.testing.assert_allclose(ours_of_it, its, rtol=0, atol=10 * atol)
        assert [each.dtype for each in results[1:]] == [each.dtype for each in wanted[1:]]
        assert_same_info(info, wanted_info, 1e-12)
        ended = wanted[2] | wanted[3]
        num_ends += wanted[2].sum(), wanted[3].sum()
        if ended.any() and modes:
            ours_of_it, its = (env.reset(options={"reset_mask": ended.copy()}) for env in (ours, official))
            np.testing.assert_allclose(ours_of_it[0], its[0], rtol=0, atol=atol)
            assert_same_info(ours_of_it[1], its[1], 1e-12)
    assert (num_ends > 1).all()
    ours.close()
    official.close()


def test_a_mode_that_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match="autoreset_mode must be NEXT_STEP or DISABLED"):
        gym.make_vec("es_flipout/Hopper-v5", num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize(
    "wrap",
    [
        vector.RecordEpisodeStatistics,
        vector.NormalizeReward,
        vector.NormalizeObservation,
        vector.FlattenObservation,
        vector.DictInfoToList,
        lambda env: vector.ClipReward(env, -1, 1),
        lambda env: vector.ClipAction(env),
        lambda env: vector.DtypeObservation(env, np.float64),
        lambda env: vector.TransformObservation(env, lambda x: x * np.float32(2)),
    ],
)
def test_gymnasiums_wrappers_work_on_it(wrap):
    env = wrap(gym.make_vec("es_flipout/InvertedPendulum-v5", num_envs=NUM_ENVS, threads=1))
    observations, _ = env.reset(seed=0)
    assert type(observations) is np.ndarray
    assert observations.dtype == env.observation_space.dtype
    for _ in range(3):
        observations, rewards, *_ = env.step(env.action_space.sample())
    assert observations.shape == env.observation_space.shape
    assert type(rewards) is np.ndarray
    assert rewards.shape == (NUM_ENVS,)


def test_episode_statistics_are_those_of_the_episodes():
    env = vector.RecordEpisodeStatistics(
        gym.make_vec("es_flipout/InvertedPendulum-v5", num_envs=2, threads=1, max_episode_steps=4)
    )
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.zeros((2, 1), np.float32))
    assert info["episode"]["l"].tolist() == [4, 4]
    assert info["episode"]["r"].tolist() == [4, 4]


def test_members_play_in_it_as_in_the_one_inside():
    inside = make_vec("InvertedPendulum-v5", NUM_ENVS, threads=1, max_episode_steps=50)
    env = gym.make_vec(
        "es_flipout/InvertedPendulum-v5",
        num_envs=NUM_ENVS,
        threads=1,
        max_episode_steps=50,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    wrapped = vector.RecordEpisodeStatistics(env)
    policy = MLPPolicy(
        inside.single_observation_space, inside.single_action_space, hidden_sizes=(4,), init="normc"
    )
    population = FlipoutES(policy, population_size=8, sigma=0.3).ask()
    expected = evaluate(population, inside, reset_seeds=range(8))
    for each in (env, wrapped):
        np.testing.assert_array_equal(
            evaluate(population, each, reset_seeds=range(8)).returns, expected.returns
        )
    assert len(set(expected.returns)) > 1


def test_it_says_which_envs_failed_and_why_also_to_a_player(monkeypatch):
    env = gym.make_vec("es_flipout/InvertedPendulum-v5", num_envs=NUM_ENVS, threads=1)
    foreign = ForeignVectorEnv(vector.RecordEpisodeStatistics(env))
    foreign.reset(seed=0)
    step = env.env.step

    def fails(actions):
        *results, info = step(actions)
        return *results, info | failure_info({1: "it blew up"}, NUM_ENVS)

    monkeypatch.setattr(env.env, "step", fails)
    *_, info = env.step(np.zeros((NUM_ENVS, 1), np.float32))
    assert info["failure"].tolist() == [None, "it blew up", None]
    assert info["_failure"].tolist() == [False, True, False]
    *_, info = foreign.step(torch.zeros(NUM_ENVS, 1))
    assert info["failed"].tolist() == [False, True, False]
    assert info["failures"] == ["it blew up"]


def test_it_closes_the_one_inside():
    env = NumpyVectorEnv(make_vec("InvertedPendulum-v5", 1, threads=1))
    env.close()
    assert env.env.closed
