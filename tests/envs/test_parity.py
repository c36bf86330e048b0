"""Native environments against the official Gymnasium ones: same seeds, same actions, same everything."""

from __future__ import annotations

import inspect
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.envs import TASKS, make_vec
from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

NUM_ENVS = 3
STEPS = 300
SEED = 100
RESET_EVERY = 4
"""Ended envs wait for the next multiple of this many steps, so that each is frozen for a while first."""
TOLERANCE = 1e-9
"""For info entries, and for the rewards and sines of tasks that are not exact."""
SINES = {"InvertedDoublePendulum-v5": slice(1, 5), "Reacher-v5": slice(0, 4)}
"""Sines and cosines in observations. All else there is copied or clipped from what the same physics
computed, or a single difference of it, so it must be equal to the last bit."""

NO_CONTACT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
NO_IMPACT = {"include_cfrc_ext_in_observation": False, "impact_cost_weight": 0}

CASES = [
    pytest.param("Ant-v5", {"max_episode_steps": 90}, MjDataPoolEngine, id="ant"),
    pytest.param(
        "Ant-v5",
        {
            **NO_CONTACT,
            "exclude_current_positions_from_observation": False,
            "frame_skip": 3,
            "reset_noise_scale": 0.2,
            "healthy_z_range": (0.45, 0.95),
            "main_body": "aux_1",
        },
        BatchEngine,
        id="ant-positions-no-contact",
    ),
    pytest.param(
        "Ant-v5",
        {
            "include_cfrc_ext_in_observation": False,
            "contact_cost_weight": 0.02,
            # Without 0 in it: even the world, which nothing touches, has a clipped force.
            "contact_force_range": (0.1, 0.4),
            "main_body": 6,
            "max_episode_steps": 60,
        },
        MjDataPoolEngine,
        id="ant-contact-cost-alone",
    ),
    pytest.param(
        "Ant-v5",
        {
            "contact_cost_weight": 0,
            "contact_force_range": (-0.3, 0.2),
            "forward_reward_weight": 2.0,
            "ctrl_cost_weight": 0.3,
            "healthy_reward": 1.5,
            # It starts within this range, falls out of it and lives on.
            "healthy_z_range": (0.5, 0.8),
            "terminate_when_unhealthy": False,
            "max_episode_steps": 70,
        },
        MjDataPoolEngine,
        id="ant-contact-observed-alone-never-terminates",
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
    pytest.param("Hopper-v5", {}, BatchEngine, id="hopper"),
    pytest.param(
        "Hopper-v5",
        {
            "frame_skip": 2,
            "healthy_z_range": (1.15, 1.3),
            "healthy_angle_range": (-0.05, 0.3),
            "reset_noise_scale": 0.02,
            "exclude_current_positions_from_observation": False,
        },
        BatchEngine,
        id="hopper-positions-z-angle-ranges",
    ),
    pytest.param(
        "Hopper-v5",
        # Velocities reach 4 long before the torso sinks or leans.
        {"healthy_state_range": (-4.0, 5.0), "healthy_angle_range": (-9.0, 9.0)},
        BatchEngine,
        id="hopper-state-range",
    ),
    pytest.param(
        "Hopper-v5",
        {
            "forward_reward_weight": 2.0,
            "ctrl_cost_weight": 0.3,
            "healthy_reward": 1.5,
            "terminate_when_unhealthy": False,
            "max_episode_steps": 60,
        },
        BatchEngine,
        id="hopper-weights-never-terminates",
    ),
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
    pytest.param("HumanoidStandup-v5", {"max_episode_steps": 100}, MjDataPoolEngine, id="humanoid-standup"),
    pytest.param(
        "HumanoidStandup-v5",
        {
            **NO_IMPACT,
            "exclude_current_positions_from_observation": False,
            "include_cinert_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "frame_skip": 3,
            "uph_cost_weight": 3.0,
            "ctrl_cost_weight": 0.3,
            "reset_noise_scale": 0.05,
            "max_episode_steps": 60,
        },
        BatchEngine,
        id="humanoid-standup-positions-no-impact",
    ),
    pytest.param(
        "HumanoidStandup-v5",
        # It lies on the ground: the cost is between the bounds, and at either.
        {
            "include_cfrc_ext_in_observation": False,
            "include_cvel_in_observation": False,
            "impact_cost_weight": 1e-4,
            "impact_cost_range": (1.0, 30.0),
            "max_episode_steps": 60,
        },
        MjDataPoolEngine,
        id="humanoid-standup-impact-cost-alone",
    ),
    pytest.param("InvertedDoublePendulum-v5", {}, BatchEngine, id="inverted-double-pendulum"),
    pytest.param(
        "InvertedDoublePendulum-v5",
        {"frame_skip": 2, "healthy_reward": 3.0, "reset_noise_scale": 0.2},
        BatchEngine,
        id="inverted-double-pendulum-kwargs",
    ),
    pytest.param("InvertedPendulum-v5", {}, BatchEngine, id="inverted-pendulum"),
    pytest.param(
        "InvertedPendulum-v5",
        {"reset_noise_scale": 0.15, "frame_skip": 1},
        BatchEngine,
        id="inverted-pendulum-kwargs",
    ),
    pytest.param("Pusher-v5", {}, BatchEngine, id="pusher"),
    pytest.param(
        "Pusher-v5",
        {
            "frame_skip": 3,
            "reward_near_weight": 0.2,
            "reward_dist_weight": 2.0,
            "reward_control_weight": 0.7,
            "max_episode_steps": 30,
        },
        BatchEngine,
        id="pusher-kwargs",
    ),
    pytest.param("Reacher-v5", {}, BatchEngine, id="reacher"),
    pytest.param(
        "Reacher-v5",
        {"frame_skip": 3, "reward_dist_weight": 2.0, "reward_control_weight": 0.7, "max_episode_steps": 30},
        BatchEngine,
        id="reacher-kwargs",
    ),
    pytest.param("Swimmer-v5", {"max_episode_steps": 100}, BatchEngine, id="swimmer"),
    pytest.param(
        "Swimmer-v5",
        {
            "frame_skip": 3,
            "forward_reward_weight": 0.5,
            "ctrl_cost_weight": 0.7,
            "reset_noise_scale": 0.3,
            "exclude_current_positions_from_observation": False,
            "max_episode_steps": 60,
        },
        BatchEngine,
        id="swimmer-kwargs",
    ),
    pytest.param("Walker2d-v5", {}, BatchEngine, id="walker2d"),
    pytest.param(
        "Walker2d-v5",
        {
            "frame_skip": 3,
            "healthy_z_range": (1.1, 1.3),
            "healthy_angle_range": (-0.1, 0.2),
            "reset_noise_scale": 0.02,
            "exclude_current_positions_from_observation": False,
        },
        BatchEngine,
        id="walker2d-positions-z-angle-ranges",
    ),
    pytest.param(
        "Walker2d-v5",
        {
            "forward_reward_weight": 2.0,
            "ctrl_cost_weight": 0.3,
            "healthy_reward": 1.5,
            "terminate_when_unhealthy": False,
            "max_episode_steps": 60,
        },
        BatchEngine,
        id="walker2d-weights-never-terminates",
    ),
]


def official_envs(env_id, kwargs, count=NUM_ENVS):
    with deprecations_silenced():
        return [gym.make(env_id, **kwargs) for _ in range(count)]


def float32_actions(space):
    return space.sample()


def float64_actions_beyond_range(space):
    # No float32 holds these, and MuJoCo clamps them: the control cost is of what was asked for.
    return space.sample().astype(np.float64) * (1.5 + 1e-10)


def assert_close(got, expected, what):
    error = np.abs(np.asarray(got, np.float64) - expected).max(initial=0)
    assert error <= TOLERANCE, f"{what}: {got} instead of {expected}"


def assert_same_observations(env_id, observations, expected):
    observations, sines = observations.numpy().copy(), SINES.get(env_id, slice(0, 0))
    assert_close(observations[:, sines], expected[:, sines], "sines")
    observations[:, sines] = expected[:, sines]
    np.testing.assert_array_equal(observations, expected)


def assert_same_rewards(env_id, rewards, expected):
    if TASKS[env_id].is_exact:
        np.testing.assert_array_equal(rewards.numpy(), expected)
    else:
        assert_close(rewards, expected, "rewards")


def assert_same_info(info, ids, official_infos):
    """Compares every entry of some envs; neither side may have an entry that the other lacks."""
    for i in ids:
        assert info.keys() == official_infos[i].keys()
    for name, value in info.items():
        assert_close(value.numpy()[ids], np.stack([official_infos[i][name] for i in ids]), name)


def assert_same_rollout(env_id, kwargs, engine, draw_actions, *, num_envs=NUM_ENVS, steps=STEPS, seed=SEED):
    """Steps both sides side by side, frozen envs and masked resets included."""
    env = make_vec(env_id, num_envs, dtype=torch.float64, threads=2, **kwargs)
    officials = official_envs(env_id, kwargs, num_envs)
    assert type(env.engine) is engine
    env.action_space.seed(seed)

    observations, info = env.reset(seed=seed)
    starts = [official.reset(seed=seed + i) for i, official in enumerate(officials)]
    expected = np.stack([observation for observation, _ in starts])
    official_infos = [official_info for _, official_info in starts]
    assert_same_observations(env_id, observations, expected)
    assert_same_info(info, range(num_envs), official_infos)
    terminated, truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
    resets = 0
    for step in range(steps):
        if step % RESET_EVERY == 0 and (ended := terminated | truncated).any():
            observations, info = env.reset(options={"reset_mask": ended})
            restarted = np.flatnonzero(ended)
            for i in restarted:
                expected[i], official_infos[i] = officials[i].reset()
            terminated[restarted] = truncated[restarted] = False
            resets += len(restarted)
            assert_same_observations(env_id, observations, expected)
            assert_same_info(info, restarted, official_infos)

        actions = draw_actions(env.action_space)
        live = np.flatnonzero(~(terminated | truncated))
        observations, rewards, env_terminated, env_truncated, info = env.step(torch.from_numpy(actions))
        expected_rewards = np.zeros(num_envs)
        for i in live:
            outcome = officials[i].step(actions[i])
            expected[i], expected_rewards[i], terminated[i], truncated[i], official_infos[i] = outcome
        assert_same_observations(env_id, observations, expected)
        assert_same_rewards(env_id, rewards, expected_rewards)
        np.testing.assert_array_equal(env_terminated.numpy(), terminated)
        np.testing.assert_array_equal(env_truncated.numpy(), truncated)
        if len(live):
            assert_same_info(info, live, official_infos)
        # qpos and qvel are whole even where the observation leaves a part out.
        for name in ("qpos", "qvel"):
            official = np.stack([getattr(official.unwrapped.data, name) for official in officials])
            np.testing.assert_array_equal(env.engine.fields[name].numpy(), official)
    env.close()
    # Otherwise no masked reset was compared.
    assert resets >= num_envs


def test_a_task_without_sines_is_exact():
    assert {env_id for env_id, task in TASKS.items() if not task.is_exact} == SINES.keys()


@pytest.mark.parametrize(("env_id", "kwargs", "engine"), CASES)
def test_rollout_is_the_official_one(env_id, kwargs, engine):
    assert_same_rollout(env_id, kwargs, engine, float32_actions)


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "kwargs", "engine"), CASES)
def test_long_rollouts_of_many_seeds_are_the_official_ones(env_id, kwargs, engine):
    assert_same_rollout(env_id, kwargs, engine, float32_actions, num_envs=10, steps=1000, seed=1000)


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_float64_actions_beyond_the_range_are_treated_as_officially(env_id):
    kwargs = {"max_episode_steps": 40}
    engine = MjDataPoolEngine if "cfrc_ext" in TASKS[env_id]().fields else BatchEngine
    assert_same_rollout(env_id, kwargs, engine, float64_actions_beyond_range, steps=100)


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_another_model_gives_the_official_rollout(env_id, tmp_path):
    original = inspect.signature(TASKS[env_id]).parameters["xml_file"].default
    model = Path(expand_model_path(original)).read_text()
    path = tmp_path / "other.xml"
    # Of two options, the later one holds.
    path.write_text(model.replace("</mujoco>", '<option timestep="0.003" gravity="0.3 0 -8"/></mujoco>'))
    kwargs = {"xml_file": str(path), "max_episode_steps": 40}
    engine = MjDataPoolEngine if "cfrc_ext" in TASKS[env_id]().fields else BatchEngine
    assert_same_rollout(env_id, kwargs, engine, float32_actions, steps=100)


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_the_cases_set_every_keyword_argument(env_id):
    # The model has a test of its own, just above.
    for name, parameter in inspect.signature(TASKS[env_id]).parameters.items():
        values = [case.values[1].get(name, parameter.default) for case in CASES if case.values[0] == env_id]
        assert name == "xml_file" or any(value != parameter.default for value in values), name


# --- states that no rollout meets --------------------------------------------------------------------

BOUNDS = {
    "Ant-v5": [("qpos", 2, 0.2), ("qpos", 2, 1.0)],
    "Hopper-v5": [
        ("qpos", 1, 0.7),
        ("qpos", 2, -0.2),
        ("qpos", 2, 0.2),
        *[(name, i, sign * 100.0) for name in ("qpos", "qvel") for i in range(6) for sign in (1, -1)],
    ],
    "Humanoid-v5": [("qpos", 2, 1.0), ("qpos", 2, 2.0)],
    "InvertedDoublePendulum-v5": [("site_xpos", 2, 1.0)],
    "InvertedPendulum-v5": [("qpos", 1, -0.2), ("qpos", 1, 0.2)],
    "Walker2d-v5": [("qpos", 1, 0.8), ("qpos", 1, 2.0), ("qpos", 2, -1.0), ("qpos", 2, 1.0)],
}
"""Where health ends: a field, the entry of it, and the value."""


def odd_states(env_id, task, data):
    """Yields (field, entry, value) to set: huge values, what is not finite, each bound and its neighbors."""
    for name in task.fields:
        for i in range(getattr(data, name).size):
            yield from ((name, i, value) for value in (np.nan, np.inf, -np.inf, 30.0, -30.0))
    for name, i, bound in BOUNDS.get(env_id, ()):
        yield from ((name, i, value) for value in (bound, *np.nextafter(bound, [-np.inf, np.inf])))


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        *((env_id, {}) for env_id in sorted(TASKS)),
        # By default the range of the state is wider than that of the angle, which is a part of it.
        ("Hopper-v5", {"healthy_angle_range": (-np.inf, np.inf)}),
    ],
)
def test_outcome_of_odd_states_is_the_official_one(env_id, kwargs):
    task = TASKS[env_id](**kwargs)
    [official] = official_envs(env_id, kwargs, count=1)
    official.reset(seed=SEED)
    official = official.unwrapped
    # The step finds the state as it is, and leaves it so.
    official.do_simulation = lambda *_: None
    action = np.full(task.model.nu, 0.3, np.float32)
    official.data.ctrl[:] = action
    names = {*task.fields, *task.info_fields}
    outcomes, fields = [], {name: [] for name in names}
    for name, i, value in odd_states(env_id, task, official.data):
        entries = getattr(official.data, name).reshape(-1)
        kept = entries[i]
        entries[i] = value
        with np.errstate(all="ignore"):
            outcomes.append(official.step(action))
        for field in names:
            fields[field].append(getattr(official.data, field).copy())
        entries[i] = kept

    fields = {field: torch.from_numpy(np.stack(values)) for field, values in fields.items()}
    actions = torch.from_numpy(np.tile(action, (len(outcomes), 1)))
    here = task.locate(fields)
    rewards, terms = task.reward(here, here, fields, actions)
    expected_rewards = np.array([outcome[1] for outcome in outcomes])
    np.testing.assert_allclose(rewards.numpy(), expected_rewards, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(task.terminated(fields).numpy(), [outcome[2] for outcome in outcomes])
    observations = torch.cat([part.flatten(1) for part in task.observe(fields)], dim=1)
    np.testing.assert_allclose(
        observations.numpy(), np.stack([outcome[0] for outcome in outcomes]), rtol=0, atol=TOLERANCE
    )
    for name, value in (terms | task.state_info(fields)).items():
        expected = np.stack([outcome[4][name] for outcome in outcomes])
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=name)


# --- the rest of the interface -----------------------------------------------------------------------


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_returned_info_outlives_the_next_step(env_id):
    env = make_vec(env_id, 2, threads=1)
    env.action_space.seed(SEED)
    _, info = env.reset(seed=SEED)
    for _ in range(3):
        kept = {name: value.clone() for name, value in info.items()}
        *_, next_info = env.step(env.action_space.sample())
        assert all(torch.equal(info[name], value) for name, value in kept.items())
        info = next_info


def test_a_main_body_that_is_not_there_is_refused():
    for body in ("tail", 14, -1):
        with pytest.raises(ValueError, match=f"no body {body!r}"):
            make_vec("Ant-v5", 1, main_body=body)


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


@pytest.mark.parametrize(("env_id", "kwargs", "engine"), CASES)
def test_spaces_and_time_limit_are_the_official_ones(env_id, kwargs, engine):
    env = make_vec(env_id, 2, dtype=torch.float64, threads=1, **kwargs)
    [official] = official_envs(env_id, kwargs, count=1)
    assert env.single_observation_space == official.observation_space
    assert env.single_action_space == official.action_space
    assert env.max_episode_steps == official.spec.max_episode_steps


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
