"""The vector environment's own contract: rows, resets, seeds, frozen episodes, and its error messages."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import RENDERING_KEYWORDS, make_vec
from es_flipout.envs.batch import BatchEngine
from es_flipout.envs.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

NO_CONTACT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
ON_EACH_ENGINE = pytest.mark.parametrize("kwargs", [NO_CONTACT, {}], ids=["BatchEngine", "MjDataPoolEngine"])


def pendulum(num_envs=3, **kwargs):
    return make_vec("InvertedPendulum-v5", num_envs, threads=1, **kwargs)


def pushes(*forces):
    return torch.tensor(forces).unsqueeze(1)


def snapshot(env):
    return {name: value.clone() for name, value in env.engine.fields.items()}


def mask(*rows):
    return {"reset_mask": np.array(rows, bool)}


def test_is_a_vector_environment_without_autoreset():
    env = pendulum(num_envs=2)
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED
    assert env.num_envs == 2


# --- frozen rows -------------------------------------------------------------------------------------


@ON_EACH_ENGINE
def test_an_ended_row_is_frozen_while_the_others_move(kwargs):
    env = make_vec("Humanoid-v5", 3, threads=2, max_episode_steps=4, **kwargs)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(2):
        env.step(env.action_space.sample())
    env.reset(options=mask(False, True, True))
    for _ in range(2):
        observations, rewards, _, truncated, _ = env.step(env.action_space.sample())
    assert truncated.tolist() == [True, False, False]
    assert rewards[0] != 0  # the last step of an episode still counts

    fields = snapshot(env)
    next_observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    for name, value in snapshot(env).items():
        assert torch.equal(value[0], fields[name][0]), name
    assert (env.engine.fields["qpos"][1:] != fields["qpos"][1:]).any(dim=1).all()
    assert torch.equal(next_observations[0], observations[0])
    assert (rewards == 0).tolist() == [True, False, False]
    assert terminated.tolist() == [False, False, False]
    assert truncated.tolist() == [True, False, False]


def test_a_terminated_row_keeps_its_flag_and_is_never_truncated():
    limit = 25
    # Almost upright, so that only the pushed pole falls within the limit.
    env = pendulum(max_episode_steps=limit, reset_noise_scale=1e-4)
    env.reset(seed=0)
    history = [env.step(pushes(3.0, 0.0, 0.0)) for _ in range(limit)]
    terminated = torch.stack([step[2] for step in history])
    truncated = torch.stack([step[3] for step in history])
    length = int((~terminated[:, 0]).sum()) + 1
    assert 1 < length < limit
    assert terminated[length - 1 :, 0].all()
    assert not truncated[:, 0].any()
    # The flag is of the row: its neighbours run on to their time limit.
    assert not terminated[:, 1:].any()
    assert truncated[:, 1:].sum(dim=0).tolist() == [1, 1]
    # Still upright on every step but the last, and then frozen.
    rewards = torch.stack([step[1] for step in history])[:, 0]
    assert rewards.tolist() == [1.0] * (length - 1) + [0.0] * (limit - length + 1)


def test_rows_that_were_never_reset_are_frozen():
    env = pendulum()
    observations, _ = env.reset(seed=0, options=mask(False, True, False))
    stepped, rewards, terminated, _, _ = env.step(pushes(1.0, 1.0, 1.0))
    assert rewards.tolist() == [0.0, 1.0, 0.0]
    assert terminated.tolist() == [True, False, True]
    assert (stepped != observations).any(dim=1).tolist() == [False, True, False]


# --- resets and seeds --------------------------------------------------------------------------------


@ON_EACH_ENGINE
def test_reset_mask_starts_the_named_rows_alone(kwargs):
    env = make_vec("Humanoid-v5", 3, threads=2, max_episode_steps=5, **kwargs)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(3):
        observations, *_ = env.step(env.action_space.sample())
    fields = snapshot(env)
    reset_observations, _ = env.reset(seed=50, options=mask(False, True, False))
    for name, value in snapshot(env).items():
        assert torch.equal(value[[0, 2]], fields[name][[0, 2]]), name
    assert torch.equal(reset_observations[[0, 2]], observations[[0, 2]])
    # Row 1 starts as any fresh environment does from its seed.
    fresh, _ = make_vec("Humanoid-v5", 1, threads=1, **kwargs).reset(seed=51)
    assert torch.equal(reset_observations[1], fresh[0])
    # And its clock starts anew, while those of the others run on.
    truncations = [env.step(env.action_space.sample())[3].tolist() for _ in range(5)]
    assert [row[0] for row in truncations].index(True) == 1
    assert [row[1] for row in truncations].index(True) == 4
    assert [row[2] for row in truncations].index(True) == 1


def test_a_torch_mask_is_as_good_as_a_numpy_one():
    env = pendulum()
    first, _ = env.reset(seed=0)
    second, _ = env.reset(options={"reset_mask": torch.tensor([True, False, True])})
    assert (first != second).any(dim=1).tolist() == [True, False, True]


def test_an_int_seeds_row_i_with_seed_plus_i():
    rows = torch.cat([pendulum(num_envs=1).reset(seed=20 + i)[0] for i in range(3)])
    observations, _ = pendulum().reset(seed=20)
    assert torch.equal(observations, rows)
    assert len(torch.unique(rows, dim=0)) == 3


def test_a_sequence_seeds_each_row_in_order():
    in_order, _ = pendulum().reset(seed=20)
    shuffled, _ = pendulum().reset(seed=[22, 20, 21])
    assert torch.equal(shuffled, in_order[[2, 0, 1]])


def test_a_row_without_seed_draws_on():
    env = pendulum(dtype=torch.float64)
    env.reset(seed=20)
    with deprecations_silenced():
        official = gym.make("InvertedPendulum-v5")
    official.reset(seed=21)
    observations, _ = env.reset(seed=[30, None, 32])
    np.testing.assert_array_equal(observations[1].numpy(), official.reset()[0])
    seeded, _ = pendulum(dtype=torch.float64).reset(seed=30)
    assert torch.equal(observations[[0, 2]], seeded[[0, 2]])


def test_a_masked_reset_draws_nothing_in_the_other_rows():
    env, other = pendulum(), pendulum()
    env.reset(seed=0)
    other.reset(seed=0)
    env.reset(seed=9, options=mask(False, True, False))
    unmasked, _ = env.reset()
    expected, _ = other.reset()
    assert torch.equal(unmasked[[0, 2]], expected[[0, 2]])
    assert not torch.equal(unmasked[1], expected[1])


def test_an_unseeded_first_reset_is_random():
    first, _ = pendulum().reset()
    second, _ = pendulum().reset()
    assert (first != second).any(dim=1).all()


# --- spaces, dtypes, engines -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spaces_and_tensors_have_the_chosen_dtype(dtype):
    env = make_vec("HalfCheetah-v5", 2, dtype=dtype, threads=1)
    observations, _ = env.reset(seed=0)
    stepped, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert observations.dtype == stepped.dtype == rewards.dtype == dtype
    assert terminated.dtype == truncated.dtype == torch.bool
    assert env.observation_space.contains(observations.numpy())
    assert env.single_observation_space.contains(observations[0].numpy())
    assert rewards.shape == terminated.shape == truncated.shape == (2,)


def test_float32_observations_are_the_float64_ones_rounded():
    narrow, wide = (make_vec("HalfCheetah-v5", 2, dtype=dtype) for dtype in (torch.float32, torch.float64))
    narrow.reset(seed=0)
    wide.reset(seed=0)
    wide.action_space.seed(0)
    for _ in range(50):
        actions = wide.action_space.sample()
        observations, rewards, *_ = narrow.step(actions)
        expected_observations, expected_rewards, *_ = wide.step(actions)
        # The physics never rounds, so nothing accumulates.
        assert torch.equal(observations, expected_observations.to(torch.float32))
        assert torch.equal(rewards, expected_rewards.to(torch.float32))


@pytest.mark.parametrize(
    ("kwargs", "engine"),
    [
        ({}, MjDataPoolEngine),
        ({"contact_cost_weight": 0}, MjDataPoolEngine),
        ({"include_cfrc_ext_in_observation": False}, MjDataPoolEngine),
        (NO_CONTACT, BatchEngine),
    ],
)
def test_contact_forces_decide_the_engine(kwargs, engine):
    env = make_vec("Humanoid-v5", 1, threads=1, **kwargs)
    assert env.task.needs_contact_forces is (engine is MjDataPoolEngine)
    assert type(env.engine) is engine


def test_numpy_actions_give_what_torch_actions_give():
    results = []
    for convert in (torch.from_numpy, np.asarray):
        env = make_vec("HalfCheetah-v5", 2, threads=1)
        env.reset(seed=0)
        env.action_space.seed(0)
        results.append([env.step(convert(env.action_space.sample()))[:2] for _ in range(5)])
    for (observations, rewards), (other_observations, other_rewards) in zip(*results, strict=True):
        assert torch.equal(observations, other_observations)
        assert torch.equal(rewards, other_rewards)


def test_actions_may_come_from_a_graph():
    env = pendulum(num_envs=1)
    env.reset(seed=0)
    observations, *_ = env.step(torch.ones(1, 1, requires_grad=True))
    assert not observations.requires_grad


def test_returned_tensors_are_not_overwritten_later():
    env = make_vec("InvertedPendulum-v5", 3, dtype=torch.float64, threads=1)
    first_observations, _ = env.reset(seed=0)
    observations, rewards, terminated, truncated, info = env.step(pushes(3.0, -3.0, 0.0))
    kept = [first_observations, observations, rewards, terminated, truncated, *info.values()]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(10):
        *_, last_terminated, _, _ = env.step(pushes(3.0, -3.0, 0.0))
    assert last_terminated.tolist() == [True, True, False]  # so the flags and rewards have changed since
    env.reset()
    for tensor, copy in zip(kept, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Humanoid-v5"])
def test_info_is_not_overwritten_later(env_id):
    env = make_vec(env_id, 2, dtype=torch.float64, threads=1)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    copies = {name: value.clone() for name, value in info.items()}
    env.step(env.action_space.sample())
    for name, value in info.items():
        assert torch.equal(value, copies[name]), name


def test_actions_are_left_as_they_were():
    env = pendulum()
    env.reset(seed=0)
    actions = pushes(1.0, 2.0, 3.0).double()
    env.step(actions)
    env.step(pushes(0.0, 0.0, 0.0))
    assert actions.flatten().tolist() == [1.0, 2.0, 3.0]


def test_rendering_keywords_are_accepted_as_officially_and_change_nothing():
    rendering = {
        "default_camera_config": {"distance": 2.0},
        "width": 64,
        "height": 48,
        "camera_id": 0,
        "camera_name": None,
        "max_geom": 500,
        "visual_options": {},
    }
    assert rendering.keys() == RENDERING_KEYWORDS
    with deprecations_silenced():
        gym.make("InvertedPendulum-v5", **rendering).close()
    env, plain = pendulum(**rendering), pendulum()
    assert torch.equal(env.reset(seed=0)[0], plain.reset(seed=0)[0])
    assert torch.equal(env.step(pushes(1.0, 2.0, 3.0))[0], plain.step(pushes(1.0, 2.0, 3.0))[0])


# --- mistakes ----------------------------------------------------------------------------------------


def test_step_before_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded, match="reset before step"):
        pendulum().step(pushes(0.0, 0.0, 0.0))


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 1), (3, 2)])
def test_actions_of_a_wrong_shape_are_refused(shape):
    env = pendulum()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be \(3, 1\), got"):
        env.step(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [np.ones(2, bool), np.ones((3, 1), bool), np.ones(3, np.int64), [0, 1, 2]])
def test_a_wrong_reset_mask_is_refused(wrong):
    with pytest.raises(ValueError, match=r"reset_mask must be bool \[3\]"):
        pendulum().reset(options={"reset_mask": wrong})


@pytest.mark.parametrize("seeds", [[], [1, 2], [1, 2, 3, 4]])
def test_a_wrong_number_of_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match=f"{len(seeds)} seeds for 3 environments"):
        pendulum().reset(seed=seeds)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("Humanod-v5", {}, "unknown environment 'Humanod-v5'; did you mean Humanoid-v5?"),
        ("no-such-thing", {}, "available: HalfCheetah-v5, Humanoid-v5, InvertedPendulum-v5"),
        ("CartPole-v1", {}, "discrete action space"),
        ("Pendulum-v1", {}, "Pendulum-v1 is not available natively"),
        ("HalfCheetah-v5", {"healthy_reward": 1.0}, "no keyword argument 'healthy_reward'"),
        ("HalfCheetah-v5", {"healthy_reward": 1.0}, "allowed: xml_file, frame_skip, forward_reward_weight"),
        ("HalfCheetah-v5", {"xml_file": "missing.xml"}, "missing.xml does not exist"),
        ("HalfCheetah-v5", {"frame_skip": 0}, "frame_skip must be an integer >= 1, got 0"),
        ("HalfCheetah-v5", {"frame_skip": 2.5}, "frame_skip must be an integer >= 1, got 2.5"),
        ("HalfCheetah-v5", {"max_episode_steps": "x"}, "max_episode_steps must be an integer >= 1"),
        ("HalfCheetah-v5", {"xml_file": 3}, "HalfCheetah-v5: "),
        ("Humanoid-v5", {"healthy_z_range": 3}, "Humanoid-v5: "),
        ("Humanoid-v3", {}, "Humanoid-v3 is not available natively"),
        ("HalfCheetah-v5", {"max_episode_steps": 0}, "max_episode_steps must be an integer >= 1, or -1"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(env_id, kwargs, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is looked at below
        make_vec(env_id, 1, **kwargs)
    assert message in str(error.value)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="num_envs must be >= 1, got 0"):
        make_vec("HalfCheetah-v5", 0)
