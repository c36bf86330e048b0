"""A loaded policy acts as the run's policy does, in anybody's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from small_runs import KINDS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from es_flipout import load_policy
from es_flipout.cli.playback import play_run

every_kind = pytest.mark.parametrize("kind", KINDS)


def play(policy, seed):
    """Returns the return of an episode, and its observations and actions."""
    env = policy.make_env()
    observation, _ = env.reset(seed=seed)
    total, state, done, observations, actions = 0.0, None, False, [], []
    while not done:
        action, state = policy.predict(observation, state)
        assert env.action_space.contains(action)
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        done = terminated or truncated
    env.close()
    return total, observations, actions


def batch_of(space, observations):
    count = len(observations)
    return concatenate(space, observations, create_empty_array(space, count))


def to_torch(observation):
    if isinstance(observation, dict):
        return {name: to_torch(each) for name, each in observation.items()}
    if isinstance(observation, tuple):
        return tuple(map(to_torch, observation))
    return torch.as_tensor(observation)


@every_kind
def test_it_plays_as_es_eval_does(kind, small_run):
    run = small_run(kind)
    policy = load_policy(run.path)
    scored = play_run(run, run.best, episodes=2, seed=7).episodes
    assert [play(policy, seed)[0] for seed in (7, 8)] == pytest.approx(scored.returns.tolist(), rel=1e-5)


@every_kind
def test_a_batch_and_tensors_give_the_same_actions(kind, small_run):
    policy = load_policy(small_run(kind).path)
    _, observations, actions = play(policy, 3)
    if policy.predict(observations[0])[1] is not None:  # of a recurrent policy: the first action alone
        observations, actions = [observations[0]] * 3, [actions[0]] * 3
    batch = batch_of(policy.observation_space, observations)
    found, _ = policy.predict(batch)
    assert isinstance(found, np.ndarray)
    assert found.dtype == policy.action_space.dtype
    np.testing.assert_allclose(found, np.stack(actions), rtol=1e-4, atol=1e-6)
    found, _ = policy.predict(to_torch(batch))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), np.stack(actions), rtol=1e-4, atol=1e-6)
    one, _ = policy.predict(to_torch(observations[0]))
    assert one.shape == (policy.action_space.shape or ())


@pytest.mark.parametrize("kind", ["gru", "lstm", "stacked", "stacked_gru"])
def test_episodes_of_a_batch_keep_their_states_apart(kind, small_run):
    policy = load_policy(small_run(kind).path)
    _, first, _ = play(policy, 0)
    rows = np.stack([first[:6], first[6:12]], axis=1)  # [6, 2, O]
    alone = [[], []]
    for row in range(2):
        state = None
        for step in range(6):
            if (row, step) == (1, 3):
                state = None  # the second row begins anew
            action, state = policy.predict(rows[step, row], state)
            alone[row].append(action)
    state = None
    for step in range(6):
        together, state = policy.predict(rows[step], state, episode_start=[step == 0, step in (0, 3)])
        np.testing.assert_allclose(together, [alone[0][step], alone[1][step]], rtol=1e-4, atol=1e-6)
    assert not np.allclose(policy.predict(rows[5])[0], together, atol=1e-6), "the state does not matter"
    with pytest.raises(
        ValueError, match="the state must be the one that predict returned for 1 observation of"
    ):
        policy.predict(rows[0, 0], state)


def test_stable_baselines3_evaluates_it(small_run):
    run = small_run("gru")
    policy = load_policy(run.path)
    envs = make_vec_env(policy.make_env, n_envs=2, seed=5)
    mean, _ = evaluate_policy(policy, envs, n_eval_episodes=2, deterministic=False)
    assert mean == pytest.approx(play_run(run, run.best, episodes=2, seed=5).episodes.mean_return, rel=1e-5)


def test_observations_of_any_kind_of_array(small_run):
    policy = load_policy(small_run("mlp").path)
    observation = np.linspace(-1, 1, 17)
    wanted, _ = policy.predict(observation)
    frozen = observation.astype(np.float32)
    frozen.flags.writeable = False
    for same in (frozen, observation.tolist(), [observation] * 2, np.stack([observation] * 2)[::-1]):
        each = np.broadcast_to(wanted, (*np.shape(same)[:-1], 6))
        np.testing.assert_allclose(policy.predict(same)[0], each, rtol=1e-4, atol=1e-6)


def test_it_says_what_it_is(small_run):
    run = small_run("parts")
    policy = load_policy(run.path, checkpoint="last")
    assert policy.env_id == "small_runs:Parts-v0"
    assert set(policy.observation_space.spaces) == {"camera", "joints", "switches"}
    assert policy.action_space.nvec.tolist() == [3, 2]
    assert policy.checkpoint == run.last
    assert (policy.generation, policy.env_steps) == (1, run.read_metrics()[-1]["env_steps"])
    assert not policy.module.training
    assert load_policy(run.best).checkpoint == run.best
    assert batch_space(policy.observation_space, 2)["camera"].shape == (2, 2, 2, 1)


def test_what_cannot_be_loaded_or_observed_is_one_line(small_run, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a run directory: it has no config\.yaml"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"checkpoint other\.pt does not exist"):
        load_policy(small_run("mlp").path, checkpoint="other.pt")
    (tmp_path / "config.yaml").write_text("env: {id: Hopper-v5, wings: 2}\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not the configuration of a run: .*'wings'"):
        load_policy(tmp_path)
    policy = load_policy(small_run("mlp").path)
    with pytest.raises(
        ValueError, match=r"HalfCheetah-v5 must have shape \(17,\), or N of them in a batch, got \(3,\)"
    ):
        policy.predict(np.zeros(3))
    with pytest.raises(
        ValueError, match=r"observations of small_runs:Parts-v0 are Dict\(.*\), got a NumPy array"
    ):
        load_policy(small_run("parts").path).predict(np.zeros(3))


def test_parts_that_do_not_fit_are_one_line(small_run):
    policy = load_policy(small_run("parts").path)
    good = policy.make_env().reset(seed=0)[0]
    joints = good["joints"][0]
    for wrong, message in (
        (
            {"switches": [0, 1, 2]},
            r"\['switches'\] of observations of small_runs:Parts-v0 must have shape \(2,\), or N of them",
        ),
        (
            {"joints": (joints, 0)},
            r"\['joints'\]\[1\] of observations of small_runs:Parts-v0 must be of Discrete\(3, start=1",
        ),
        ({"joints": (joints, "a")}, r"\['joints'\]\[1\] .* must be an array of real numbers, got 'a'"),
        (
            {"joints": (joints,)},
            r"Parts-v0 are Dict\(.*\), got an object of type dict without \['joints'\]\[1\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            policy.predict({**good, **wrong})
    wanted, _ = policy.predict(good)
    mixed = {**to_torch(good), "switches": good["switches"].tolist()}
    np.testing.assert_array_equal(policy.predict(mixed)[0], wanted)


def test_states_and_checkpoints_that_do_not_fit_are_one_line(small_run):
    run = small_run("gru")
    policy = load_policy(run.path)
    _, state = policy.predict(np.zeros((2, 17)))
    with pytest.raises(ValueError, match="episode_start must have 2 values, one per observation, got 1"):
        policy.predict(np.zeros((2, 17)), state, episode_start=[True])
    with pytest.raises(ValueError, match="the state must be the one that predict returned for 2 obs"):
        policy.predict(np.zeros((2, 17)), state.numpy())
    with pytest.raises(ValueError, match=r"best\.pt is a checkpoint itself; omit checkpoint='last'"):
        load_policy(run.best, checkpoint="last")
