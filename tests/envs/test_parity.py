"""Native environments against the official Gymnasium ones: same seeds, same actions, same everything."""

from __future__ import annotations

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import TASKS, make_vec
from es_flipout.envs.batch import BatchEngine
from es_flipout.envs.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

ROWS = 3
STEPS = 300
SEED = 100
RESET_EVERY = 4
"""Ended rows wait for the next multiple of this many steps, so that each is frozen for a while first."""
TOLERANCE = 1e-9
"""For what we sum in another order than Gymnasium (the centre of mass, the contact cost); observations
are copies of what the same physics computed, so they must be equal to the last bit."""

NO_CONTACT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}

CASES = [
    pytest.param("Humanoid-v5", {}, MjDataPoolEngine, id="humanoid"),
    pytest.param("Humanoid-v5", NO_CONTACT, BatchEngine, id="humanoid-no-contact"),
    pytest.param(
        "Humanoid-v5",
        # Without the range the cost is 0 in the air and far above 0.9 on impact: both ends are met.
        {
            "include_cfrc_ext_in_observation": False,
            "contact_cost_weight": 1e-4,
            "contact_cost_range": (0.1, 0.9),
        },
        MjDataPoolEngine,
        id="humanoid-contact-cost-alone",
    ),
    pytest.param(
        "Humanoid-v5", {"contact_cost_weight": 0}, MjDataPoolEngine, id="humanoid-contact-observed-alone"
    ),
    pytest.param(
        "Humanoid-v5",
        {
            **NO_CONTACT,
            "exclude_current_positions_from_observation": False,
            "include_cvel_in_observation": False,
            "frame_skip": 3,
            "healthy_z_range": (1.2, 1.5),
        },
        BatchEngine,
        id="humanoid-positions-frame-skip-z-range",
    ),
    pytest.param(
        "Humanoid-v5",
        {
            **NO_CONTACT,
            "include_cinert_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "forward_reward_weight": 2.0,
            "ctrl_cost_weight": 0.3,
            "healthy_reward": 1.5,
            "reset_noise_scale": 0.05,
            # It starts above this range and falls through it: both bounds are met.
            "healthy_z_range": (1.0, 1.38),
            "terminate_when_unhealthy": False,
            "max_episode_steps": 120,
        },
        BatchEngine,
        id="humanoid-weights-never-terminates",
    ),
    pytest.param("HalfCheetah-v5", {"max_episode_steps": 130}, BatchEngine, id="half-cheetah"),
    pytest.param(
        "HalfCheetah-v5",
        {
            "frame_skip": 3,
            "forward_reward_weight": 0.5,
            "ctrl_cost_weight": 0.7,
            "reset_noise_scale": 0.3,
            "exclude_current_positions_from_observation": False,
            "max_episode_steps": 50,
        },
        BatchEngine,
        id="half-cheetah-kwargs",
    ),
    pytest.param("InvertedPendulum-v5", {}, BatchEngine, id="inverted-pendulum"),
    pytest.param(
        "InvertedPendulum-v5",
        {"reset_noise_scale": 0.15, "frame_skip": 1},
        BatchEngine,
        id="inverted-pendulum-kwargs",
    ),
]


def official_envs(env_id, kwargs, count=ROWS):
    with deprecations_silenced():
        return [gym.make(env_id, **kwargs) for _ in range(count)]


def float32_actions(space):
    return space.sample()


def float64_actions_beyond_range(space):
    # No float32 holds these, and MuJoCo clamps them: the control cost is of what was asked for.
    return space.sample().astype(np.float64) * (1.5 + 1e-10)


def assert_same_rollout(env_id, kwargs, engine, draw_actions):
    """Steps both sides side by side, frozen rows and masked resets included."""
    env = make_vec(env_id, ROWS, dtype=torch.float64, threads=2, **kwargs)
    officials = official_envs(env_id, kwargs)
    assert type(env.engine) is engine
    env.action_space.seed(SEED)

    observations, _ = env.reset(seed=SEED)
    expected = np.stack([official.reset(seed=SEED + i)[0] for i, official in enumerate(officials)])
    terminated, truncated = np.zeros(ROWS, bool), np.zeros(ROWS, bool)
    resets = 0
    for step in range(STEPS):
        if step % RESET_EVERY == 0 and (ended := terminated | truncated).any():
            observations, _ = env.reset(options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                expected[i], _ = officials[i].reset()
                terminated[i] = truncated[i] = False
                resets += 1
        np.testing.assert_array_equal(observations.numpy(), expected)
        # qpos and qvel are whole even where the observation leaves a part out.
        for i, official in enumerate(officials):
            np.testing.assert_array_equal(env.engine.fields["qpos"][i].numpy(), official.unwrapped.data.qpos)
            np.testing.assert_array_equal(env.engine.fields["qvel"][i].numpy(), official.unwrapped.data.qvel)

        actions = draw_actions(env.action_space)
        live = ~(terminated | truncated)
        observations, rewards, env_terminated, env_truncated, info = env.step(torch.from_numpy(actions))
        expected_rewards = np.zeros(ROWS)
        for i in np.flatnonzero(live):
            outcome = officials[i].step(actions[i])
            expected[i], expected_rewards[i], terminated[i], truncated[i], official_info = outcome
            assert info.keys() >= {name for name in official_info if name.startswith("reward_")}
            for name, value in info.items():
                assert value[i].item() == pytest.approx(official_info[name], rel=TOLERANCE, abs=TOLERANCE)
        np.testing.assert_allclose(rewards.numpy(), expected_rewards, rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_array_equal(env_terminated.numpy(), terminated)
        np.testing.assert_array_equal(env_truncated.numpy(), truncated)
    # Otherwise no masked reset was compared.
    assert resets >= ROWS


@pytest.mark.parametrize(("env_id", "kwargs", "engine"), CASES)
def test_rollout_is_the_official_one(env_id, kwargs, engine):
    assert_same_rollout(env_id, kwargs, engine, float32_actions)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "engine"),
    [
        pytest.param("Humanoid-v5", NO_CONTACT, BatchEngine, id="humanoid"),
        pytest.param("HalfCheetah-v5", {"max_episode_steps": 60}, BatchEngine, id="half-cheetah"),
    ],
)
def test_float64_actions_beyond_the_range_are_treated_as_officially(env_id, kwargs, engine):
    assert_same_rollout(env_id, kwargs, engine, float64_actions_beyond_range)


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_keyword_arguments_and_defaults_are_the_official_ones(env_id):
    def task_parameters(constructor):
        # What only rendering reads is not a task's affair.
        return {
            name: parameter.default
            for name, parameter in inspect.signature(constructor).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name != "default_camera_config"
        }

    [official] = official_envs(env_id, {}, count=1)
    assert task_parameters(TASKS[env_id]) == task_parameters(type(official.unwrapped))


@pytest.mark.parametrize("kwargs", [{}, NO_CONTACT])
def test_humanoid_spaces_are_the_official_ones(kwargs):
    env = make_vec("Humanoid-v5", 2, dtype=torch.float64, **kwargs)
    [official] = official_envs("Humanoid-v5", kwargs, count=1)
    assert env.single_observation_space == official.observation_space
    assert env.single_action_space == official.action_space


@pytest.mark.parametrize(
    ("kwargs", "truncated_at"),
    [({"max_episode_steps": 7}, 7), ({}, 1000), ({"max_episode_steps": -1}, None)],
    ids=["given", "registered", "none"],
)
def test_truncates_at_the_time_limit(kwargs, truncated_at):
    # HalfCheetah never terminates, so only the limit can end its episode.
    env = make_vec("HalfCheetah-v5", 1, threads=1, **kwargs)
    [official] = official_envs("HalfCheetah-v5", kwargs, count=1)
    action = np.zeros((1, 6), np.float32)

    def first_truncation(step):
        return next((t for t in range(1, 1010) if step()), None)

    env.reset(seed=0)
    official.reset(seed=0)
    assert first_truncation(lambda: env.step(action)[3].item()) == truncated_at
    assert first_truncation(lambda: official.step(action[0])[3]) == truncated_at
