"""The vector environment's own contract: envs, resets, seeds, frozen episodes, and its error messages."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TransformReward

from es_flipout.envs import TASKS, MujocoVectorEnv, TorchVectorEnv, make_vec
from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.inverted_pendulum import InvertedPendulum
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.numpy_vector_env import NumpyVectorEnv

NO_CONTACT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
ON_EACH_ENGINE = pytest.mark.parametrize("kwargs", [NO_CONTACT, {}], ids=["BatchEngine", "MjDataPoolEngine"])


def pendulum(num_envs=3, **kwargs):
    return make_vec("InvertedPendulum-v5", num_envs, threads=1, **kwargs)


def pushes(*forces):
    return torch.tensor(forces).unsqueeze(1)


def snapshot(env):
    return {name: value.clone() for name, value in env.engine.fields.items()}


def mask(*flags):
    return {"reset_mask": np.array(flags, bool)}


def test_is_a_vector_environment_without_autoreset():
    env = pendulum(num_envs=2)
    assert isinstance(env, TorchVectorEnv)
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED
    assert env.num_envs == 2


# --- frozen envs -------------------------------------------------------------------------------------


@ON_EACH_ENGINE
def test_an_ended_env_is_frozen_while_the_others_move(kwargs):
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


def test_a_terminated_env_keeps_its_flag_and_is_never_truncated():
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
    # The flag is of the env: its neighbors run on to their time limit.
    assert not terminated[:, 1:].any()
    assert truncated[:, 1:].sum(dim=0).tolist() == [1, 1]
    # Still upright on every step but the last, and then frozen.
    rewards = torch.stack([step[1] for step in history])[:, 0]
    assert rewards.tolist() == [1.0] * (length - 1) + [0.0] * (limit - length + 1)


def test_envs_that_were_never_reset_are_frozen():
    env = pendulum()
    observations, _ = env.reset(seed=0, options=mask(False, True, False))
    stepped, rewards, terminated, _, _ = env.step(pushes(1.0, 1.0, 1.0))
    assert rewards.tolist() == [0.0, 1.0, 0.0]
    assert terminated.tolist() == [True, False, True]
    assert (stepped != observations).any(dim=1).tolist() == [False, True, False]


# --- resets and seeds --------------------------------------------------------------------------------


@ON_EACH_ENGINE
def test_reset_mask_starts_the_named_envs_alone(kwargs):
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
    # Env 1 starts as any fresh environment does from its seed.
    fresh, _ = make_vec("Humanoid-v5", 1, threads=1, **kwargs).reset(seed=51)
    assert torch.equal(reset_observations[1], fresh[0])
    # And its clock starts anew, while those of the others run on.
    truncations = [env.step(env.action_space.sample())[3].tolist() for _ in range(5)]
    assert [flags[0] for flags in truncations].index(True) == 1
    assert [flags[1] for flags in truncations].index(True) == 4
    assert [flags[2] for flags in truncations].index(True) == 1


def test_a_torch_mask_is_as_good_as_a_numpy_one():
    env = pendulum()
    first, _ = env.reset(seed=0)
    second, _ = env.reset(options={"reset_mask": torch.tensor([True, False, True])})
    assert (first != second).any(dim=1).tolist() == [True, False, True]


def test_an_int_seeds_env_i_with_seed_plus_i():
    alone = torch.cat([pendulum(num_envs=1).reset(seed=20 + i)[0] for i in range(3)])
    observations, _ = pendulum().reset(seed=20)
    assert torch.equal(observations, alone)
    assert len(torch.unique(alone, dim=0)) == 3


def test_a_sequence_seeds_each_env_in_order():
    in_order, _ = pendulum().reset(seed=20)
    shuffled, _ = pendulum().reset(seed=[22, 20, 21])
    assert torch.equal(shuffled, in_order[[2, 0, 1]])


def test_an_env_without_seed_draws_on():
    env = pendulum(dtype=torch.float64)
    env.reset(seed=20)
    with deprecations_silenced():
        official = gym.make("InvertedPendulum-v5")
    official.reset(seed=21)
    observations, _ = env.reset(seed=[30, None, 32])
    np.testing.assert_array_equal(observations[1].numpy(), official.reset()[0])
    seeded, _ = pendulum(dtype=torch.float64).reset(seed=30)
    assert torch.equal(observations[[0, 2]], seeded[[0, 2]])


def test_a_masked_reset_draws_nothing_in_the_other_envs():
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
    assert observations.dtype == stepped.dtype == dtype
    assert rewards.dtype == torch.float64  # as the task computes them
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
        assert torch.equal(rewards, expected_rewards)


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
    assert ("cfrc_ext" in env.task.fields) is (engine is MjDataPoolEngine)
    assert type(env.engine) is engine


def test_the_batch_engine_is_refused_where_contact_forces_are_needed():
    with pytest.raises(ValueError, match=r"engine 'batch' has no contact forces \(cfrc_ext\)"):
        make_vec("Humanoid-v5", 1, engine="batch")


def test_the_engine_may_be_chosen_and_changes_nothing():
    envs = [
        make_vec("Humanoid-v5", 5, engine=engine, threads=2, max_episode_steps=25, **NO_CONTACT)
        for engine in ("batch", "mjdata_pool")
    ]
    assert [type(env.engine) for env in envs] == [BatchEngine, MjDataPoolEngine]
    (batch, _), (pool, _) = (env.reset(seed=0) for env in envs)
    assert torch.equal(batch, pool)
    envs[0].action_space.seed(0)
    for step in range(60):
        actions = envs[0].action_space.sample()
        batch, pool = (env.step(actions) for env in envs)
        assert all(torch.equal(one, other) for one, other in zip(batch[:4], pool[:4], strict=True))
        assert batch[4].keys() == pool[4].keys()
        assert all(torch.equal(value, pool[4][name]) for name, value in batch[4].items())
        ended = batch[2] | batch[3]
        if step % 4 == 0:
            (batch, _), (pool, _) = (
                env.reset(seed=step, options={"reset_mask": ended.numpy()}) for env in envs
            )
            assert torch.equal(batch, pool)


@ON_EACH_ENGINE
def test_results_do_not_depend_on_the_number_of_threads(kwargs):
    def rollout(threads):
        env = make_vec("Humanoid-v5", 9, threads=threads, max_episode_steps=20, **kwargs)
        env.action_space.seed(0)
        history = [env.reset(seed=0)[0]]
        for step in range(30):
            history += env.step(env.action_space.sample())[:4]
            if step % 7 == 0:
                history.append(env.reset(options={"reset_mask": (history[-1] | history[-2]).numpy()})[0])
        return history

    assert all(torch.equal(one, two) for one, two in zip(rollout(1), rollout(2), strict=True))


def test_without_info_there_is_none():
    env, telling = make_vec("Humanoid-v5", 2, threads=1, info=False), make_vec("Humanoid-v5", 2, threads=1)
    observations, info = env.reset(seed=0)
    assert info == {}
    expected, entries = telling.reset(seed=0)
    assert entries
    assert torch.equal(observations, expected)
    actions = env.action_space.sample()
    *results, info = env.step(actions)
    *expected, entries = telling.step(actions)
    assert info == {}
    assert entries
    assert all(torch.equal(got, wanted) for got, wanted in zip(results, expected, strict=True))


def test_a_reset_of_no_env_changes_nothing():
    env = pendulum()
    observations, _ = env.reset(seed=0)
    again, _ = env.reset(seed=1, options=mask(False, False, False))
    assert torch.equal(again, observations)
    assert env.step(pushes(0.0, 0.0, 0.0))[1].tolist() == [1.0, 1.0, 1.0]


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


def test_returned_tensors_may_be_written_to():
    env, undisturbed = pendulum(max_episode_steps=2), pendulum(max_episode_steps=2)
    for each in (env, undisturbed):
        each.reset(seed=0)
        each.step(pushes(0.0, 0.0, 0.0))
        each.reset(options=mask(False, True, True))
    history = []
    for each in (env, undisturbed):
        observations, rewards, terminated, truncated, _ = each.step(pushes(0.1, 0.1, 0.1))
        if each is env:
            observations.fill_(7.0)
            rewards.fill_(7.0)
            terminated |= truncated
            truncated.logical_not_()
        results = [
            each.reset(seed=3, options=mask(False, False, True))[0],
            *each.step(pushes(0.1, 0.1, 0.1))[:4],
        ]
        history.append(results)
    for got, wanted in zip(*history, strict=True):
        assert torch.equal(got, wanted)


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


# --- envs that fail ----------------------------------------------------------------------------------

ON_EACH_PENDULUM = pytest.mark.parametrize("engine", ["batch", "mjdata_pool"])
NAN = float("nan")


@ON_EACH_PENDULUM
def test_a_failed_env_ends_and_the_others_run_as_if_alone(engine):
    env, undisturbed = pendulum(engine=engine), pendulum(engine=engine)
    env.reset(seed=0)
    undisturbed.reset(seed=0)
    env.step(pushes(0.0, 0.0, 0.0))
    undisturbed.step(pushes(0.0, 0.0, 0.0))
    observations, rewards, terminated, truncated, info = env.step(pushes(0.1, NAN, 0.2))
    expected, *_, sound_info = undisturbed.step(pushes(0.1, 0.0, 0.2))
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert terminated.tolist() == [False, True, False]
    assert truncated.tolist() == [False, False, False]
    assert info["failed"].dtype == np.bool_
    assert info["failed"].tolist() == [False, True, False]
    assert info["failures"] == ["MuJoCo warning BADCTRL"]
    assert "failed" not in sound_info
    assert "failures" not in sound_info
    assert torch.equal(observations[[0, 2]], expected[[0, 2]])

    frozen = observations[1]
    for _ in range(3):
        observations, rewards, terminated, _, info = env.step(pushes(0.1, NAN, 0.2))
        expected, *_ = undisturbed.step(pushes(0.1, 0.0, 0.2))
        assert "failed" not in info  # it is told once
        assert terminated.tolist() == [False, True, False]
        assert torch.equal(observations[1], frozen)
        assert rewards.tolist() == [1.0, 0.0, 1.0]
        assert torch.equal(observations[[0, 2]], expected[[0, 2]])

    started, info = env.reset(seed=7, options=mask(False, True, False))
    undisturbed.reset(seed=7, options=mask(False, True, False))
    assert "failed" not in info
    assert torch.equal(started[[0, 2]], observations[[0, 2]])
    for _ in range(3):
        stepped, undisturbed_stepped = (each.step(pushes(0.1, -0.1, 0.2)) for each in (env, undisturbed))
        assert all(
            torch.equal(got, wanted) for got, wanted in zip(stepped[:4], undisturbed_stepped[:4], strict=True)
        )
        assert not stepped[2].any()


def test_several_failed_envs_have_a_line_each_in_order():
    env = pendulum(num_envs=5, info=False)
    env.reset(seed=0)
    *_, info = env.step(pushes(0.0, NAN, 0.0, NAN, NAN))
    assert info["failed"].tolist() == [False, True, False, True, True]
    assert info["failures"] == ["MuJoCo warning BADCTRL"] * 3


class StartsBroken(InvertedPendulum):
    """Gives no position in the start of seed 2, an enormous velocity in that of seed 4."""

    def __init__(self):
        super().__init__()
        self.no_position, self.fast = (
            super(StartsBroken, self).initial_state(seeding.np_random(seed)[0])[0][0] for seed in (2, 4)
        )

    def initial_state(self, rng):
        qpos, qvel = super().initial_state(rng)
        qvel[1] = 1e11 if qpos[0] == self.fast else qvel[1]
        qpos[0] = NAN if qpos[0] == self.no_position else qpos[0]
        return qpos, qvel


@ON_EACH_PENDULUM
def test_an_env_may_fail_as_it_starts(engine):
    env = MujocoVectorEnv(StartsBroken(), 5, engine=engine, threads=1)
    observations, info = env.reset(seed=0)
    assert info["failed"].tolist() == [False, False, True, False, True]
    assert info["failures"] == ["MuJoCo warning BADQPOS", "MuJoCo warning BADQVEL"]
    assert observations.isfinite().all()
    observations, rewards, terminated, _, info = env.step(torch.zeros(5, 1))
    assert "failed" not in info
    assert rewards.tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert terminated.tolist() == [False, False, True, False, True]
    undisturbed = pendulum(num_envs=5)
    undisturbed.reset(seed=0)
    expected, *_ = undisturbed.step(torch.zeros(5, 1))
    assert torch.equal(observations[[0, 1, 3]], expected[[0, 1, 3]])
    _, info = env.reset(options=mask(False, False, True, False, True))
    assert "failed" not in info
    _, rewards, terminated, *_ = env.step(torch.zeros(5, 1))
    assert rewards.tolist() == [1.0] * 5
    assert not terminated.any()


# --- retire ------------------------------------------------------------------------------------------


def test_retired_envs_are_frozen_until_they_are_reset():
    env, undisturbed = pendulum(), pendulum()
    for each in (env, undisturbed):
        each.reset(seed=0)
        observations, *_ = each.step(pushes(0.0, 0.1, 0.0))
    env.retire(np.array([True, False, True]))
    for _ in range(2):
        stepped, rewards, terminated, truncated, info = env.step(pushes(1.0, 0.1, 1.0))
        expected, *_ = undisturbed.step(pushes(1.0, 0.1, 1.0))
        assert rewards.tolist() == [0.0, 1.0, 0.0]
        assert terminated.tolist() == [True, False, True]
        assert not truncated.any()
        assert "failed" not in info
        assert torch.equal(stepped[[0, 2]], observations[[0, 2]])
        assert torch.equal(stepped[1], expected[1])
    env.reset(options=mask(True, False, False))
    _, rewards, terminated, *_ = env.step(pushes(0.0, 0.0, 0.0))
    assert rewards.tolist() == [1.0, 1.0, 0.0]
    assert terminated.tolist() == [False, False, True]


def test_the_clock_of_a_retired_env_starts_anew():
    env = pendulum(num_envs=2, max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(2):
        env.step(pushes(0.0, 0.0))
    env.retire(np.array([True, False]))
    env.reset(options=mask(True, False))
    truncations = [env.step(pushes(0.0, 0.0))[3].tolist() for _ in range(3)]
    assert truncations == [[False, True], [False, True], [True, True]]


# --- Gymnasium's own checks --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value is")
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
@pytest.mark.parametrize("env_id", TASKS)
def test_gymnasium_finds_no_fault_with_a_single_environment(env_id):
    env = gym.make(f"es_flipout/{env_id}").unwrapped
    check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("env_id", TASKS)
def test_gymnasium_finds_no_difference_to_the_official_environment(env_id):
    with deprecations_silenced():
        envs = [gym.make(f"{namespace}{env_id}", max_episode_steps=60) for namespace in ("es_flipout/", "")]
    # The check compares arrays with a tolerance and numbers without, to their very type.
    ours, official = (TransformReward(env, lambda reward: np.array([reward], np.float64)) for env in envs)
    check_environments_match(ours, official, num_steps=150, seed=3, info_comparison="keys-equivalence")
    ours.close()
    official.close()


@pytest.mark.parametrize("env_id", TASKS)
def test_spaces_are_the_official_ones(env_id):
    with deprecations_silenced():
        official = gym.make(env_id)
    env = make_vec(env_id, 3, dtype=torch.float64, threads=1)
    assert env.single_observation_space == official.observation_space
    assert env.single_action_space == official.action_space
    assert env.observation_space == batch_space(official.observation_space, 3)
    assert env.action_space == batch_space(official.action_space, 3)
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations.numpy())
    assert env.observation_space.contains(env.step(env.action_space.sample())[0].numpy())


def test_gymnasium_makes_the_vector_environment():
    env = gym.make_vec("es_flipout/Humanoid-v5", num_envs=4)  # pytest turns warnings into errors
    assert type(env) is NumpyVectorEnv
    assert env.num_envs == 4
    assert env.env.max_episode_steps == 1000
    ours, _ = make_vec("Humanoid-v5", 4).reset(seed=1)
    assert np.array_equal(env.reset(seed=1)[0], ours.numpy())
    env.close()
    limited = gym.make_vec("es_flipout/Humanoid-v5", num_envs=2, max_episode_steps=7, threads=1, info=False)
    assert limited.env.max_episode_steps == 7
    assert limited.reset(seed=0)[1] == {}
    limited.close()


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
