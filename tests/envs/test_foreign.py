"""Vector environments that someone else made: whatever resets itself, no episode loses or gains a step."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import ForeignVectorEnv, make_vec
from es_flipout.rollout.host import HostPlayer

NUM_ENVS = 3
BASE = 100
"""Rewards are BASE * episode + step: a sum tells which steps of which episodes are in it."""
POISON = 7.0
"""An action that makes the environment raise."""
OBSERVATIONS = spaces.Box(-1e6, 1e6, (3,), np.float32)
ACTIONS = spaces.Box(-10, 10, (1,), np.float32)
ON_EACH_MODE = pytest.mark.parametrize("mode", AutoresetMode)


def length_of(i, episode):
    return 1 + (2 * i + 3 * episode) % 5


def is_truncated(i, episode):
    return (i + episode) % 2 == 1


class Counting(gym.Env):
    """Shows (env, episode, step); envs and episodes differ in length."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def __init__(self, i):
        self.index, self.episode, self.step_in_episode = i, 0, 0
        self.seeds = []

    def _observation(self):
        return np.array([self.index, self.episode, self.step_in_episode], np.float32)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.episode, self.step_in_episode = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        assert self.episode > 0, "reset it first"
        assert self.step_in_episode < length_of(self.index, self.episode), "stepped beyond its end"
        if action[0] == POISON:
            raise RuntimeError("poisoned")
        self.step_in_episode += 1
        over = self.step_in_episode == length_of(self.index, self.episode)
        truncated = over and is_truncated(self.index, self.episode)
        reward = BASE * self.episode + self.step_in_episode
        return self._observation(), reward, over and not truncated, truncated, {}


class TorchCounting(VectorEnv):
    """The same envs as tensors, written as a vector environment of its own."""

    def __init__(self, mode):
        self.metadata = {"autoreset_mode": mode}
        self.mode = mode
        self.num_envs = NUM_ENVS
        self.single_observation_space, self.single_action_space = OBSERVATIONS, ACTIONS
        self.observation_space, self.action_space = (
            batch_space(OBSERVATIONS, NUM_ENVS),
            batch_space(ACTIONS, NUM_ENVS),
        )
        self.envs = [Counting(i) for i in range(NUM_ENVS)]
        self.over = torch.zeros(NUM_ENVS, dtype=torch.bool)
        self.observations = torch.zeros(NUM_ENVS, 3)

    def _start(self, i, seed=None):
        self.observations[i] = torch.from_numpy(self.envs[i].reset(seed=seed)[0])

    def reset(self, *, seed=None, options=None):
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(NUM_ENVS)]
        mask = (options or {}).get("reset_mask", np.ones(NUM_ENVS, bool))
        for i in np.flatnonzero(mask):
            self._start(i, seed[i])
            self.over[i] = False
        return self.observations, {}

    def step(self, actions):
        assert isinstance(actions, torch.Tensor)
        assert actions.dtype == torch.float32
        rewards, ends = torch.zeros(NUM_ENVS), torch.zeros(2, NUM_ENVS, dtype=torch.bool)
        for i, env in enumerate(self.envs):
            if self.over[i] and self.mode == AutoresetMode.NEXT_STEP:
                self._start(i)
                continue
            observation, rewards[i], ends[0, i], ends[1, i], _ = env.step(actions[i].numpy())
            self.observations[i] = torch.from_numpy(observation)
            if ends[:, i].any() and self.mode == AutoresetMode.SAME_STEP:
                self._start(i)
        self.over = ends.any(dim=0)
        return self.observations, rewards, ends[0], ends[1], {}


def numpy_env(mode):
    # In Gymnasium's own wrappers, as gymnasium.make gives them: they refuse a step before the first reset.
    return SyncVectorEnv(
        [lambda i=i: gym.wrappers.OrderEnforcing(Counting(i)) for i in range(NUM_ENVS)],
        autoreset_mode=mode,
    )


@pytest.fixture(params=[numpy_env, TorchCounting], ids=["numpy", "torch"])
def counting(request):
    """Makes the envs in a mode, wrapped."""
    return lambda mode: ForeignVectorEnv(request.param(mode), dtype=torch.float64)


def only(*flags):
    return {"reset_mask": np.array(flags, bool)}


def idle(value=0.0):
    return torch.full((NUM_ENVS, 1), value)


def play(env, count, used=None):
    """Runs `count` episodes as a player does; returns what each acted on, was paid, and how it ended."""
    used = np.ones(NUM_ENVS, bool) if used is None else used
    holds, done, begun = [None] * NUM_ENVS, [], 0
    live = np.zeros(NUM_ENVS, bool)
    observations = None
    for _ in range(200):
        wanted = used & ~live
        wanted[np.flatnonzero(wanted)[max(count - begun, 0) :]] = False
        if wanted.any():
            observations, info = env.reset(options={"reset_mask": wanted})
            assert not (info["started"] & ~wanted).any()
            for i in np.flatnonzero(info["started"]):
                holds[i] = {"env": int(i), "acted_on": [], "rewards": []}
                done.append(holds[i])
                begun += 1
            live |= info["started"]
        if not live.any():
            return done
        acted_on = observations
        observations, rewards, terminated, truncated, info = env.step(idle())
        assert info == {}
        assert (rewards[~torch.from_numpy(live)] == 0).all()
        for i in np.flatnonzero(live):
            holds[i]["acted_on"].append(acted_on[i].tolist())
            holds[i]["rewards"].append(float(rewards[i]))
            holds[i]["end"] = bool(terminated[i]), bool(truncated[i])
        assert (terminated | truncated)[~torch.from_numpy(live)].all()
        live &= ~(terminated | truncated).numpy()
    raise AssertionError("it does not come to an end")


def assert_whole(episode):
    i, number = episode["env"], int(episode["acted_on"][0][1])
    length = length_of(i, number)
    assert episode["acted_on"] == [[i, number, step] for step in range(length)]
    assert episode["rewards"] == [BASE * number + step for step in range(1, length + 1)]
    assert episode["end"] == (not is_truncated(i, number), is_truncated(i, number))


# --- whole episodes ----------------------------------------------------------------------------------


@ON_EACH_MODE
def test_every_episode_is_whole(counting, mode):
    episodes = play(counting(mode), 20)
    assert len(episodes) == 20
    for episode in episodes:
        assert_whole(episode)
    numbers = [(episode["env"], episode["acted_on"][0][1]) for episode in episodes]
    assert len(set(numbers)) == 20  # no episode is given out twice
    assert {i for i, _ in numbers} == {0, 1, 2}


@ON_EACH_MODE
@pytest.mark.parametrize("used", [[True, False, False], [False, True, True]])
def test_episodes_are_whole_beside_envs_without_work(counting, mode, used):
    episodes = play(counting(mode), 6, np.array(used))
    assert len(episodes) == 6
    for episode in episodes:
        assert used[episode["env"]]
        assert_whole(episode)


@ON_EACH_MODE
def test_a_second_round_of_episodes_is_whole(counting, mode):
    env = counting(mode)
    play(env, 4)
    for episode in play(env, 4):
        assert_whole(episode)


def test_in_disabled_mode_no_env_is_ahead_of_its_resets(counting):
    episodes = play(counting(AutoresetMode.DISABLED), 9)
    # Without idle envs in between, an env's episodes are numbered in order.
    by_env = {i: [e["acted_on"][0][1] for e in episodes if e["env"] == i] for i in range(NUM_ENVS)}
    for numbers in by_env.values():
        assert numbers == list(range(1, len(numbers) + 1))


# --- resets ------------------------------------------------------------------------------------------


@ON_EACH_MODE
def test_all_envs_start_at_once(counting, mode):
    observations, info = counting(mode).reset(seed=5)
    assert info["started"].tolist() == [True, True, True]
    assert observations.tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0]]
    assert observations.dtype == torch.float64


@ON_EACH_MODE
def test_envs_that_were_never_asked_for_stay_ended(counting, mode):
    env = counting(mode)
    observations, info = env.reset(options=only(True, False, False))
    assert info["started"].tolist() == [True, False, False]
    assert observations[0].tolist() == [0, 1, 0]
    for step in (1, 2):
        _, rewards, terminated, truncated, _ = env.step(idle())
        assert rewards.tolist() == [BASE + step, 0, 0]
        assert (terminated | truncated).tolist() == [False, True, True]


@ON_EACH_MODE
def test_a_reset_of_no_env_changes_nothing(counting, mode):
    env = counting(mode)
    observations, _ = env.reset(seed=0)
    again, info = env.reset(options=only(False, False, False))
    assert info["started"].tolist() == [False, False, False]
    assert torch.equal(again, observations)
    assert env.step(idle())[1].tolist() == [BASE + 1] * 3


def test_an_env_of_an_environment_that_resets_itself_starts_when_it_is_due(counting):
    env = counting(AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    assert [length_of(i, 1) for i in range(NUM_ENVS)] == [4, 1, 3]
    _, _, terminated, truncated, _ = env.step(idle())
    assert (terminated | truncated).tolist() == [False, True, False]
    _, info = env.reset(options=only(False, True, False))
    assert info["started"].tolist() == [False, False, False]  # its own reset takes the next step
    observations, rewards, terminated, truncated, _ = env.step(idle())
    assert rewards.tolist() == [BASE + 2, 0, BASE + 2]
    assert (terminated | truncated).tolist() == [False, True, False]
    observations, info = env.reset(options=only(False, True, False))
    assert info["started"].tolist() == [False, True, False]
    assert observations[1].tolist() == [1, 2, 0]
    _, rewards, *_ = env.step(idle())
    assert rewards.tolist() == [BASE + 3, 2 * BASE + 1, BASE + 3]


def test_an_env_that_resets_itself_in_the_same_step_starts_at_once(counting):
    env = counting(AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    _, rewards, terminated, truncated, _ = env.step(idle())
    assert rewards.tolist() == [BASE + 1] * 3
    assert (terminated | truncated).tolist() == [False, True, False]
    observations, info = env.reset(options=only(False, True, False))
    assert info["started"].tolist() == [False, True, False]
    assert observations[1].tolist() == [1, 2, 0]
    _, rewards, *_ = env.step(idle())
    assert rewards.tolist() == [BASE + 2, 2 * BASE + 1, BASE + 2]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_start_that_is_not_taken_is_missed(counting, mode):
    env = counting(mode)
    env.reset(seed=0)
    env.step(idle())
    env.step(idle())
    env.step(idle())  # by now env 1 has stepped idly through its second episode, or into it
    _, info = env.reset(options=only(False, True, False))
    assert info["started"].tolist() == [False, False, False]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_if_no_env_is_live_one_of_those_asked_for_starts(counting, mode):
    env = counting(mode)
    env.reset(seed=0)
    env.step(idle())
    env.retire(np.array([True, False, True]))
    # All have ended now, envs 0 and 2 for us alone: they go on until their own episodes end.
    observations, info = env.reset(options=only(True, False, False))
    assert info["started"].tolist() == [True, False, False]
    assert observations[0].tolist() == [0, 2, 0]
    _, rewards, terminated, truncated, _ = env.step(idle())
    assert rewards.tolist() == [2 * BASE + 1, 0, 0]
    assert (terminated | truncated).tolist() == [False, True, True]


def test_seeds_go_to_the_envs_that_start():
    env = ForeignVectorEnv(TorchCounting(AutoresetMode.DISABLED))
    env.reset(seed=[3, 4, 5])
    env.reset(seed=[6, None, 7], options=only(True, False, True))
    env.reset(seed=8, options=only(False, True, False))
    assert [inner.seeds for inner in env.env.envs] == [[3, 6], [4, 9], [5, 7]]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_an_environment_that_resets_itself_heeds_the_first_seed(mode):
    env = ForeignVectorEnv(TorchCounting(mode))
    env.reset(seed=[3, 14, 15])
    env.reset(seed=6)
    assert [inner.seeds for inner in env.env.envs] == [[3, 6], [4, 7], [5, 8]]


@ON_EACH_MODE
def test_only_without_autoreset_envs_restart_anytime(counting, mode):
    assert counting(mode).restarts_anytime is (mode is AutoresetMode.DISABLED)


def test_a_live_env_can_be_restarted_without_autoreset(counting):
    env = counting(AutoresetMode.DISABLED)
    env.reset(seed=0)
    env.step(idle())
    observations, info = env.reset(options=only(True, False, False))
    assert info["started"].tolist() == [True, False, False]
    assert observations.tolist() == [[0, 2, 0], [1, 1, 1], [2, 1, 1]]


@ON_EACH_MODE
def test_retired_envs_are_paid_nothing(counting, mode):
    env = counting(mode)
    env.reset(seed=0)
    env.retire(np.array([True, False, False]))
    _, rewards, terminated, truncated, _ = env.step(idle())
    assert rewards.tolist() == [0, BASE + 1, BASE + 1]
    assert (terminated | truncated).tolist() == [True, True, False]
    for _ in range(9):  # its own episode ends in between
        _, rewards, terminated, truncated, _ = env.step(idle())
        assert rewards[0] == 0
        assert terminated[0]


@ON_EACH_MODE
def test_returned_tensors_are_not_overwritten_later(counting, mode):
    env = counting(mode)
    kept = [env.reset(seed=0)[0], *env.step(idle())[:4]]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(4):
        env.step(idle())
    env.reset(seed=1)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))


@ON_EACH_MODE
def test_returned_tensors_may_be_written_to(counting, mode):
    env, undisturbed = counting(mode), counting(mode)
    for each in (env, undisturbed):
        each.reset(seed=0)
    observations, _, terminated, truncated, _ = env.step(idle())
    undisturbed.step(idle())
    terminated |= truncated
    truncated.logical_not_()
    observations.fill_(7.0)
    got, wanted = ([each.reset(options=only(False, True, False))[0]] for each in (env, undisturbed))
    got += env.step(idle())[:4]
    wanted += undisturbed.step(idle())[:4]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, wanted, strict=True))


# --- faults ------------------------------------------------------------------------------------------


@ON_EACH_MODE
def test_if_a_step_raises_all_live_episodes_have_failed(counting, mode):
    env = counting(mode)
    env.reset(seed=0)
    env.step(idle())  # ends env 1
    _, rewards, terminated, truncated, info = env.step(torch.tensor([[POISON], [0.0], [0.0]]))
    assert rewards.tolist() == [0, 0, 0]
    assert (terminated | truncated).all()
    assert terminated[0]
    assert terminated[2]
    assert info["failed"].tolist() == [True, False, True]
    assert info["failures"] == ["RuntimeError: poisoned"] * 2
    episodes = play(env, 8)
    assert len(episodes) == 8
    for episode in episodes:
        assert_whole(episode)


@ON_EACH_MODE
def test_what_an_env_without_work_is_told_to_do_is_never_done(counting, mode):
    env = counting(mode)
    env.reset(seed=0)
    env.retire(np.array([True, False, False]))
    *_, info = env.step(torch.tensor([[POISON], [0.0], [0.0]]))
    assert info == {}


def test_an_environment_that_does_not_say_how_it_resets_is_refused():
    env = TorchCounting(AutoresetMode.DISABLED)
    env.metadata = {}
    with pytest.raises(ValueError, match='its metadata must have an "autoreset_mode"'):
        ForeignVectorEnv(env)


def test_actions_of_a_wrong_shape_are_refused(counting):
    env = counting(AutoresetMode.DISABLED)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be \(3, 1\), got \(3,\)"):
        env.step(torch.zeros(3))


def test_actions_of_other_kinds_are_refused():
    env = TorchCounting(AutoresetMode.DISABLED)
    env.single_action_space = spaces.Dict(a=ACTIONS)
    with pytest.raises(ValueError, match="Dict actions are not supported"):
        ForeignVectorEnv(env)


class Returning(TorchCounting):
    """Two steps of what it is told to return."""

    def __init__(self, observations=None, rewards=None, ends=None, space=OBSERVATIONS):
        super().__init__(AutoresetMode.DISABLED)
        self.single_observation_space = space
        self.first = np.zeros((NUM_ENVS, *space.shape), space.dtype)
        self.shown = self.first if observations is None else observations
        self.paid = np.zeros(NUM_ENVS) if rewards is None else rewards
        self.ends = np.zeros(NUM_ENVS, bool) if ends is None else ends

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, actions):
        return self.shown, self.paid, self.ends, np.zeros(NUM_ENVS, bool), {}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"observations": np.zeros(3)}, r"step returned an observation of shape \(3,\), but .* \(3, 3\)"),
        ({"observations": np.zeros((2, 3))}, r"of shape \(2, 3\)"),
        ({"observations": torch.zeros(3, 4)}, r"of shape \(3, 4\)"),
        (
            {"observations": np.full((3, 3), None)},
            "not an array of numbers but a NumPy array .* dtype object",
        ),
        ({"observations": {"x": 1}}, "not an array of numbers but an object of type dict"),
        ({"observations": torch.zeros(3, 3, dtype=torch.complex64)}, "not an array of numbers but a tensor"),
        (
            {"rewards": [None] * 3},
            r"the rewards are a list of 3 values \(None, None, None\), 3 numbers are needed, one per env",
        ),
        ({"rewards": np.array([0.0, None, 1.0])}, "the rewards are a NumPy array .* dtype object"),
        ({"rewards": np.zeros((3, 2))}, r"the rewards are a NumPy array of shape \(3, 2\)"),
        ({"rewards": 0.0}, "the rewards are 0.0, 3 numbers are needed"),
        ({"rewards": torch.zeros(2)}, r"the rewards are a tensor of shape \(2,\)"),
        (
            {"ends": [0.3, 0.0, 0.0]},
            r"terminated is a list of 3 values \(0.3, 0.0, 0.0\), 3 bools are needed",
        ),
        ({"ends": np.array([0, 1, 2])}, "terminated is a NumPy array"),
        ({"ends": False}, "terminated is False, 3 bools are needed"),
    ],
)
def test_what_a_vector_environment_must_not_return_is_named(returned, message):
    env = ForeignVectorEnv(Returning(**returned))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(idle())


def test_floats_for_a_space_of_integers_are_named():
    space = spaces.Box(0, 255, (3,), np.uint8)
    env = ForeignVectorEnv(Returning(np.full((NUM_ENVS, 3), 0.7), space=space))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="an observation of floats, but observation_space declares uint8"):
        env.step(idle())


def test_a_reset_that_returns_observations_alone_is_named():
    env = Returning()
    env.reset = lambda **kwargs: env.first
    with pytest.raises(
        ValueError, match=r"reset returned a NumPy array.*but must return \(observation, info\)"
    ):
        ForeignVectorEnv(env).reset(seed=0)


@pytest.mark.parametrize(
    ("rewards", "ends"),
    [
        ([1, 2, 3], [0, 1, 0]),
        (np.array([[1], [2], [3]], np.int8), np.array([[False], [True], [False]])),
        (torch.tensor([1, 2, 3], dtype=torch.bfloat16), torch.tensor([0, 1, 0], dtype=torch.uint8)),
        (np.array([1, 2, 3], np.float16), np.array([0, 1, 0])),
    ],
)
@given(
    observations=npst.arrays(
        st.sampled_from([np.float64, ">f4", np.float16, np.int64, np.uint16, np.bool_]),
        (NUM_ENVS, 3),
        elements=st.integers(0, 1),
    )
)
def test_numbers_of_any_dtype_arrive_as_they_are(rewards, ends, observations):
    env = ForeignVectorEnv(Returning(observations, rewards, ends), dtype=torch.float64)
    env.reset(seed=0)
    shown, paid, terminated, *_ = env.step(idle())
    np.testing.assert_array_equal(shown, observations.astype(np.float64))
    assert paid.tolist() == [1, 2, 3]
    assert terminated.tolist() == [False, True, False]


def test_rewards_are_not_rounded_to_the_dtype_of_observations():
    rewards = np.array([250_000_001.0, 250_000_002.0, 250_000_003.0])
    env = ForeignVectorEnv(Returning(rewards=rewards))
    env.reset(seed=0)
    assert env.step(idle())[1].tolist() == rewards.tolist()


class OneRow(TorchCounting):
    """Declares spaces of one env for all of them, as envpool does."""

    def __init__(self, mode):
        super().__init__(mode)
        self.observation_space, self.action_space = OBSERVATIONS, ACTIONS


@ON_EACH_MODE
def test_batched_spaces_follow_from_those_of_one_env(mode):
    env = ForeignVectorEnv(OneRow(mode), dtype=torch.float64)
    assert env.action_space.shape == (NUM_ENVS, 1)
    assert env.observation_space.shape == (NUM_ENVS, 3)
    for episode in play(env, 6):
        assert_whole(episode)


@pytest.mark.parametrize("name", ["num_envs", "single_observation_space", "single_action_space"])
def test_what_a_vector_environment_must_declare_is_named(name):
    env = TorchCounting(AutoresetMode.DISABLED)
    setattr(env, name, None)
    with pytest.raises(ValueError, match=f"TorchCounting is a vector environment whose {name} is None"):
        HostPlayer(env)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_float_actions_for_integers_are_refused(dtype):
    env = ForeignVectorEnv(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"actions must be torch.int64, as action_space is, got {dtype}"):
        env.step(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("envs", [gym.make("CartPole-v1"), "CartPole-v1", None, Counting(0), [Counting(0)]])
def test_what_is_no_vector_environment_is_refused(envs):
    policy = MLPPolicy(OBSERVATIONS, ACTIONS)
    population = FlipoutES(policy, population_size=4, sigma=0.1).ask()
    with pytest.raises(TypeError, match=r"a vector environment is needed, got .*es_flipout.make_vec"):
        evaluate(population, envs)


# --- who needs it ------------------------------------------------------------------------------------


@ON_EACH_MODE
def test_discrete_actions_reach_the_environments(mode):
    def sync():
        return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=mode)

    env, plain = ForeignVectorEnv(sync(), dtype=torch.float64), sync()
    observations, _ = env.reset(seed=4)
    expected, _ = plain.reset(seed=[4, 5])
    np.testing.assert_array_equal(observations, expected)
    for actions in ([0, 1], [1, 1], [1, 0]):
        observations, rewards, *_ = env.step(torch.tensor(actions))
        expected, expected_rewards, *_ = plain.step(np.array(actions))
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_array_equal(rewards, expected_rewards)


def test_an_evaluator_wraps_foreign_environments_alone():
    native = make_vec("InvertedPendulum-v5", 2, threads=1)
    from_gymnasium = gym.make_vec("es_flipout/InvertedPendulum-v5", num_envs=2, threads=1)
    foreign = gym.make_vec("InvertedDoublePendulum-v5", num_envs=2, vectorization_mode="sync")
    assert HostPlayer(native).envs == [native]
    assert HostPlayer(from_gymnasium).envs == [from_gymnasium.env]
    (wrapped,) = HostPlayer(foreign).envs
    assert isinstance(wrapped, ForeignVectorEnv)
    assert wrapped.env is foreign


def test_closing_closes_the_wrapped_environment(counting):
    env = counting(AutoresetMode.DISABLED)
    env.close()
    assert env.env.closed


@pytest.mark.parametrize("entry", [np.array([True, False, False]), ["too far"] * 3, "all", 3, None])
def test_what_others_call_a_failure_is_none(entry):
    env = Returning()
    step = env.step
    env.step = lambda actions: (*step(actions)[:4], {"failure": entry, "_failure": np.ones(NUM_ENVS, bool)})
    torch_env = ForeignVectorEnv(env)
    torch_env.reset(seed=0)
    *_, info = torch_env.step(idle())
    assert "failed" not in info


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_envs", 0, "num_envs is 0, an integer >= 1 is needed"),
        ("num_envs", 3.0, "num_envs is 3.0, an integer >= 1"),
        ("single_action_space", [1], "single_action_space is a list .* a gymnasium.Space is needed"),
        ("metadata", None, "does not declare how it resets itself.*got None"),
        ("metadata", ["human"], "does not declare how it resets itself"),
        ("metadata", {"autoreset_mode": "never"}, "does not declare how it resets itself.*got 'never'"),
    ],
)
def test_what_it_must_declare_of_itself(name, value, message):
    env = Returning()
    setattr(env, name, value)
    with pytest.raises(ValueError, match=message):
        ForeignVectorEnv(env)
