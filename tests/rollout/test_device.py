"""DevicePlayer: what the host finds env by env, and what a CUDA graph needs of every operation."""

from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pytest
import torch
from playing import Played, rollout
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from es_flipout.envs import make_vec, register_task
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.mujoco import TASKS
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.inverted_pendulum import InvertedPendulum
from es_flipout.normalization import RunningStatistics
from es_flipout.perturbations import Flipout, Independent, LowRank
from es_flipout.policies import GRUPolicy, LSTMPolicy, MLPPolicy, StackedPolicy, stacked_space
from es_flipout.population import Population
from es_flipout.rollout import DevicePlayer, Episodes, HostPlayer, PlayError, PlayStoppedError, evaluate
from es_flipout.rollout import device as device_player
from es_flipout.rollout.action_noise import DeviceActionNoise
from es_flipout.rollout.device_loop import NOT_FINITE_BIT, DeviceLoop, SeededStates, Starts
from es_flipout.rollout.episodes import NOT_FINITE
from es_flipout.run.config import Config, EnvConfig, ESConfig
from es_flipout.run.make_player import make_player

MEMBERS, ENVS = 16, 6
TASKS_AT_WORK = ["InvertedPendulum-v5", "Hopper-v5", "Humanoid-v5"]
SHORT = {
    "InvertedPendulum-v5": 30,
    "BrokenPendulum-v0": 30,
    "BrokenStart-v0": 30,
    "Moody-v0": 30,
    "Hopper-v5": 60,
    "Humanoid-v5": 25,
}
"""Time limits: episodes end at different times, by both flags."""


def make_env(env_id, device, num_envs=ENVS, engine="warp", **kwargs):
    env = make_vec(
        env_id, num_envs, engine=engine, device=device, info=False, max_episode_steps=SHORT[env_id], **kwargs
    )
    env.task_id = env_id
    return env


def make_population(env, family=Flipout(), *, policy_class=MLPPolicy, sigma=0.3, size=MEMBERS):  # noqa: B008
    generator = torch.Generator().manual_seed(0)
    options = {} if policy_class is MLPPolicy else {"recurrent_size": 8}
    policy = policy_class(
        env.single_observation_space,
        env.single_action_space,
        hidden_sizes=(16,),
        generator=generator,
        **options,
    )
    # A policy that has seen observations: their moments are part of what must agree.
    seen = RunningStatistics(env.single_observation_space.shape[0])
    seen.update(make_env(env.task_id, "cpu", 8, engine="auto").reset(seed=0)[0])
    policy.normalizer.merge(seen)
    noise = family.sample(
        dict(policy.named_parameters()), size, torch.Generator().manual_seed(1), antithetic=True
    )
    return Population(policy.to(env.device), moved(noise, env.device), sigma)


def moved(noise, device):
    """The same noise on another device: a generator there would draw another."""
    file = io.BytesIO()
    torch.save(noise, file)
    file.seek(0)
    return torch.load(file, map_location=device, weights_only=False)


def make_seeds(episodes=1):
    return np.random.default_rng(0).integers(0, 10_000, (MEMBERS, episodes)).tolist()


def short(device):
    """A limit under which a GPU agrees, too: the pendulum amplifies what rounding does."""
    return None if device == "cpu" else 6


def assert_agree(one, other, tolerance=1e-6):
    torch.testing.assert_close(one.returns, other.returns, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(one.lengths, other.lengths)
    assert one.failures == other.failures
    assert one.observations.count == other.observations.count
    for name in ("mean", "variance"):
        mine, theirs = (getattr(each.observations, name) for each in (one, other))
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


FAMILIES = [Flipout(), Flipout(2, "gaussian"), LowRank(2)]


@pytest.mark.parametrize("env_id", TASKS_AT_WORK)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_it_finds_what_the_host_finds(device, env_id, family):
    env = make_env(env_id, device)
    population, seeds = make_population(env, family), make_seeds()
    expected = rollout(HostPlayer(env), population, seeds)
    assert len(expected.lengths.unique()) > 2  # envs were refilled at different times
    found = rollout(DevicePlayer(env), population, seeds)
    if device == "cpu":
        assert_agree(found, expected)
        return
    # A GPU adds contacts, and rows of a matrix product, in an order of its own; chaos does the rest.
    assert (found.lengths == expected.lengths).double().mean() >= 0.7
    torch.testing.assert_close(found.fitness.mean(), expected.fitness.mean(), rtol=0.1, atol=0.5)


def test_independent_noise_is_played_by_the_host(device):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env, Independent()), make_seeds()
    found = rollout(DevicePlayer(env), population, seeds)
    assert found.spent_steps == rollout(HostPlayer(env), population, seeds).spent_steps


@pytest.mark.parametrize(("num_envs", "num_bases", "made"), [(8, 3, 6), (2, 3, 3), (8, 1, 8)])
def test_a_configuration_gets_envs_that_suit_its_bases(num_envs, num_bases, made):
    config = Config(
        env=EnvConfig("InvertedPendulum-v5", num_envs=num_envs, engine="warp"),
        es=ESConfig(population_size=12, num_bases=num_bases),
        device="cpu",
    )
    player = make_player(config, torch.nn.Linear(4, 1))
    assert isinstance(player, DevicePlayer)
    assert player.env.num_envs == made
    player.close()


def test_evaluate_takes_an_environment_on_engine_warp(device):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env), make_seeds(episodes=2)
    expected = rollout(DevicePlayer(env), population, seeds, episode_limit=9)
    found = Played(evaluate(population, env, reset_seeds=seeds, episode_limit=9))
    assert_agree(found, expected)
    assert found.spent_steps == expected.spent_steps
    if device == "cuda":  # the policy may be elsewhere
        on_cpu = make_population(make_env("InvertedPendulum-v5", "cpu", engine="auto"))
        assert evaluate(on_cpu, env, reset_seeds=seeds).failures == {}


def test_a_generation_ends_with_its_last_episode(device):
    env = make_env("InvertedPendulum-v5", device, MEMBERS)
    found = rollout(DevicePlayer(env), make_population(env), make_seeds())
    steps_under_way = 0 if device == "cpu" else 1  # when the host sees that all have ended
    assert found.spent_steps == MEMBERS * (int(found.lengths.max()) + steps_under_way)


def test_envs_without_an_episode_stand_at_a_start_and_get_no_control(device):
    env, loop = make_loop(device=device)
    starts = loop._starts.qpos
    qpos, waited = env.engine._views["qpos"], 0
    while loop.live.any():
        env.engine.advance(env.task.frame_skip)
        loop.between_steps()
        for index in (~loop.live).nonzero().flatten().tolist():
            assert (qpos[index] == starts).all(dim=1).any()
            assert not env.engine.ctrl[index].any()
            waited += 1
    assert waited > 2 * ENVS  # some waited for many steps


@pytest.mark.parametrize("policy_class", [GRUPolicy, LSTMPolicy])
def test_a_recurrent_state_begins_anew_with_each_episode(device, policy_class):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env, policy_class=policy_class), make_seeds(episodes=2)
    options = {"episode_limit": short(device)}
    expected = rollout(HostPlayer(env), population, seeds, **options)
    tolerance = 1e-6 if device == "cpu" else 1e-4
    assert_agree(rollout(DevicePlayer(env), population, seeds, **options), expected, tolerance)


@pytest.mark.parametrize("limit", [None, 3, 1000])
def test_several_episodes_a_member_and_a_limit(device, limit):
    if device == "cuda" and limit != 3:
        pytest.skip("long enough for rounding to show")
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env, Flipout(2)), make_seeds(episodes=3)
    expected = rollout(HostPlayer(env), population, seeds, episode_limit=limit)
    found = rollout(DevicePlayer(env), population, seeds, episode_limit=limit)
    assert_agree(found, expected)
    assert found.lengths.max() == (3 if limit == 3 else 30)
    assert found.spent_steps % ENVS == 0
    assert found.spent_steps >= found.env_steps


@pytest.mark.parametrize("family", [Flipout(), Flipout(2), LowRank(1)], ids=str)
def test_a_return_depends_neither_on_the_envs_nor_on_the_company(family):
    results = []
    for num_envs in (4, 6, 20):
        env = make_env("Humanoid-v5", "cpu", num_envs)
        results.append(rollout(DevicePlayer(env), make_population(env, family), make_seeds()))
    for other in results[1:]:
        assert torch.equal(results[0].returns, other.returns)
        assert torch.equal(results[0].lengths, other.lengths)
        assert_agree(results[0], other, 1e-12)


def test_a_generation_agrees_with_one_on_the_cpu_engine(device):
    env = make_env("Hopper-v5", device)
    population, seeds = make_population(env), make_seeds()
    found = rollout(DevicePlayer(env), population, seeds)
    in_c = make_env("Hopper-v5", device, engine="batch")
    expected = rollout(HostPlayer(in_c), population, seeds)
    # float32 against float64: in a few episodes a contact makes much of the difference.
    close = (found.returns - expected.returns).abs() <= 1e-3 * (1 + expected.returns.abs())
    assert close.double().mean() >= 0.8
    assert (found.lengths == expected.lengths).double().mean() >= 0.8
    torch.testing.assert_close(found.fitness.mean(), expected.fitness.mean(), rtol=0.1, atol=0)


def starts_of(env, seeds):
    task = env.checked_task
    return Starts.compute(env.engine, task, SeededStates.draw(task, np.ravel(seeds)), torch.float32)


def test_states_are_drawn_ahead_and_only_once(device, monkeypatch):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds, others = make_population(env), make_seeds(), np.arange(MEMBERS).reshape(-1, 1).tolist()
    player = DevicePlayer(env)
    expected, of_others = (rollout(player, population, each) for each in (seeds, others))
    third = np.arange(50, 50 + MEMBERS).reshape(-1, 1).tolist()
    drawn, draw = [], SeededStates.draw
    monkeypatch.setattr(
        SeededStates, "draw", lambda task, each: drawn.append(each.tolist()) or draw(task, each)
    )
    seeds, others, third = (np.array(each) for each in (seeds, others, third))
    player.prefetch(others)
    assert_agree(rollout(player, population, seeds), expected)
    assert_agree(rollout(player, population, seeds), expected)  # once more, and not what was expected
    player.prefetch(third)
    assert_agree(rollout(player, population, others), of_others)
    assert_agree(rollout(player, population, seeds), expected)
    assert drawn.count(others.ravel().tolist()) == drawn.count(third.ravel().tolist()) == 1
    assert drawn.count(seeds.ravel().tolist()) == 2  # they have not been expected
    player.close()


def test_the_same_start_is_computed_once():
    env = make_env("Hopper-v5", "cpu")
    starts = starts_of(env, np.array([[5, 7], [5, 5]]))
    assert len(starts.qpos) == len(starts.observations) == 2
    assert starts.of_episode.tolist() == [0, 1, 0, 0]
    observation = make_env("Hopper-v5", "cpu", 1, engine="batch").reset(seed=7)[0][0]
    torch.testing.assert_close(starts.observations[1], observation, rtol=0, atol=1e-6)


def test_more_starts_than_envs(device):
    env = make_env("Humanoid-v5", device, 4)
    seeds = np.arange(10).reshape(5, 2)
    starts = starts_of(env, seeds)
    for seed in (0, 3, 4, 9):
        observation = make_env("Humanoid-v5", "cpu", 1, engine="auto").reset(seed=seed)[0][0]
        torch.testing.assert_close(starts.observations[seed].cpu(), observation, rtol=1e-5, atol=1e-5)


class BrokenPendulum(InvertedPendulum):
    """Pays NaN, or shows infinity, once the pole leans far to one side or the other."""

    def reward(self, before, after, fields, actions):
        rewards, info = super().reward(before, after, fields, actions)
        return torch.where(fields["qpos"][:, 1] > 0.1, torch.nan, rewards), info

    def observe(self, fields):
        qpos, qvel = super().observe(fields)
        leans = fields["qpos"][:, 1:] < -0.1
        return qpos, torch.where(leans, torch.inf, qvel)


def test_broken_episodes_rank_worst_are_counted_and_poison_nothing(device):
    register_task("BrokenPendulum-v0", BrokenPendulum, max_episode_steps=30)
    env = make_env("BrokenPendulum-v0", device)
    sound = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(sound), make_seeds()
    options = {"episode_limit": 6}
    expected = rollout(HostPlayer(env), population, seeds, **options)
    found = rollout(DevicePlayer(env), population, seeds, **options)
    assert 0 < found.failures[NOT_FINITE] == int(found.fitness.isnan().sum()) < MEMBERS
    assert found.observations.m2.isfinite().all()
    assert_agree(found, expected, 1e-6 if device == "cpu" else 1e-3)


class BrokenStart(InvertedPendulum):
    """Starts some episodes with NaN, others where nothing is."""

    def initial_state(self, rng):
        qpos, qvel = super().initial_state(rng)
        qvel[0] = {0: np.nan, 1: 1e12}.get(int(rng.integers(6)), qvel[0])
        return qpos, qvel


def test_starts_that_are_not_sound_poison_nothing(device):
    register_task("BrokenStart-v0", BrokenStart, max_episode_steps=30)
    env = make_env("BrokenStart-v0", device)
    population, seeds = make_population(make_env("InvertedPendulum-v5", device)), make_seeds()
    found = rollout(DevicePlayer(env), population, seeds, episode_limit=6)
    expected = rollout(HostPlayer(env), population, seeds, episode_limit=6)
    broken = found.fitness.isnan()
    assert torch.equal(broken, expected.fitness.isnan())
    assert 0 < found.failures.total() == int(broken.sum()) < MEMBERS
    torch.testing.assert_close(found.returns, expected.returns, rtol=1e-3, atol=1e-3, equal_nan=True)
    for name in ("count", "mean", "variance"):
        mine, theirs = (getattr(each.observations, name) for each in (found, expected))
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


class Moody(InvertedPendulum):
    """Finds no start for some seeds; its reward raises once it has been told to."""

    refuses = False

    def initial_state(self, rng):
        qpos, qvel = super().initial_state(rng)
        if qpos[0] > 0.006:
            raise LookupError("no free place")
        return qpos, qvel

    def reward(self, before, after, fields, actions):
        if self.refuses:
            raise RuntimeError("not in the\nmood")
        return super().reward(before, after, fields, actions)


register_task("Moody-v0", Moody, max_episode_steps=30)


def test_starts_that_cannot_be_drawn_are_counted_with_the_reason(device):
    env = make_env("Moody-v0", device)
    population, seeds = make_population(env), make_seeds()
    found = rollout(DevicePlayer(env), population, seeds, episode_limit=3)
    expected = rollout(HostPlayer(env), population, seeds, episode_limit=3)
    assert found.failures == expected.failures
    assert found.failures.keys() == {"Moody.initial_state: LookupError: no free place"}
    assert torch.equal(found.fitness.isnan(), expected.fitness.isnan())


def test_a_task_that_raises_between_steps_is_told_in_one_line():
    env = make_env("Moody-v0", "cpu")
    player, population = DevicePlayer(env), make_population(env)
    env.task.refuses = True
    with pytest.raises(PlayError, match=r"^Moody\.reward: RuntimeError: not in the mood$"):
        rollout(player, population, make_seeds())
    env.task.refuses = False
    assert rollout(player, population, make_seeds()).failures.total() < MEMBERS


def test_every_fault_is_counted():
    env, loop = make_loop(env_id="InvertedPendulum-v5")
    loop.faults[:] = 0
    loop.faults[:6] = torch.tensor([1, 1 | NOT_FINITE_BIT, 1, 3, NOT_FINITE_BIT, 3 | NOT_FINITE_BIT])
    found = Episodes.of_population(range(MEMBERS))
    states = SeededStates.draw(env.checked_task, np.arange(MEMBERS))
    device_player._record(found, loop, states)
    both = "MuJoCo warning BADQPOS and MuJoCo warning BADQVEL"
    assert found.failures == {"MuJoCo warning BADQPOS": 3, both: 2, NOT_FINITE: 1}
    assert found.fitness.isnan().sum() == 6
    env.close()


def test_actions_of_another_shape_are_refused():
    env = make_env("Hopper-v5", "cpu")
    population = make_population(env)
    population.policy.head.forward = lambda outputs: outputs[:, :1]
    with pytest.raises(PlayError, match=r"real numbers \[6, 3\] for 6 .* a tensor of shape \(6, 1\)"):
        rollout(DevicePlayer(env), population, make_seeds())


def test_physics_that_blows_up_is_told():
    env = make_env("Hopper-v5", "cpu")
    population = make_population(env)
    with torch.no_grad():
        population.policy.network[0].weight.fill_(torch.nan)
    found = rollout(DevicePlayer(env), population, make_seeds())
    assert found.failures == {"MuJoCo warning BADCTRL": MEMBERS}
    assert found.fitness.isnan().all()
    assert found.lengths.eq(1).all()
    assert found.observations.count == 0
    assert found.observations.mean.eq(0).all()


def test_a_stopped_evaluation_leaves_nothing_behind(device):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env), make_seeds()
    player = DevicePlayer(env)
    expected = rollout(player, population, seeds)
    asked = itertools.count()
    with pytest.raises(PlayStoppedError):
        rollout(player, population, seeds, should_stop=lambda: next(asked) == 1)
    assert_agree(rollout(player, population, seeds), expected)


def test_envs_must_suit_the_bases(device):
    env = make_env("InvertedPendulum-v5", device, 3)
    with pytest.raises(ValueError, match="3 envs cannot be shared out among 2 bases"):
        rollout(DevicePlayer(env), make_population(env, Flipout(2)), make_seeds())


def test_every_base_needs_as_many_episodes(device):
    env = make_env("InvertedPendulum-v5", device)
    with pytest.raises(ValueError, match="as many episodes for each of the 2 bases"):
        rollout(DevicePlayer(env), make_population(env, Flipout(2)), [1, 2, 3, 4])


def test_there_must_be_such_a_member(device):
    env = make_env("InvertedPendulum-v5", device)
    with pytest.raises(ValueError, match="episodes of member 16 for a population of 16"):
        rollout(DevicePlayer(env), make_population(env), list(range(17)))


def test_some_of_a_table_have_the_returns_that_they_have_in_all_of_it(device):
    env = make_env("InvertedPendulum-v5", device)
    population, seeds = make_population(env, Flipout(2)), np.array(make_seeds(2))
    whole = Episodes.of_population(seeds, limit=short(device))
    rows = np.flatnonzero(np.isin(whole.member % (MEMBERS // 2), [1, 2, 5]))
    part = whole.take(rows)
    DevicePlayer(env).play(population, whole)
    DevicePlayer(env).play(population, part)
    np.testing.assert_allclose(part.returns, whole.returns[rows], rtol=1e-4)
    assert part.lengths.tolist() == whole.lengths[rows].tolist()


def test_other_engines_are_refused():
    with pytest.raises(ValueError, match="needs an environment on engine 'warp'"):
        DevicePlayer(make_env("Hopper-v5", "cpu", engine="batch"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", [Flipout(), Flipout(2), LowRank(2)], ids=str)
@pytest.mark.parametrize("policy_class", [MLPPolicy, GRUPolicy])
def test_a_graph_replays_what_is_done_without_one(family, policy_class):
    # Of the tasks at work this one has no contacts, whose order varies.
    env = make_env("InvertedPendulum-v5", "cuda")
    population, seeds = make_population(env, family, policy_class=policy_class), make_seeds(episodes=3)
    options = {"action_noise": 0.1}
    step_by_step = rollout(DevicePlayer(env, cuda_graphs=False), population, seeds, **options)
    player = DevicePlayer(env)
    for _ in range(2):  # recorded anew, in the memory of the first
        assert_agree(rollout(player, population, seeds, **options), step_by_step)
    # The paper's arrangement: policies on the GPU, physics on the cores, in float64.
    options["episode_limit"] = short("cuda")
    sizes = [make_env("InvertedPendulum-v5", "cuda", 3, engine="batch") for _ in range(2)]
    expected = rollout(player, population, seeds, **options)
    assert_agree(rollout(HostPlayer(*sizes), population, seeds, **options), expected, 1e-2)


class Looks(MLPPolicy):
    """Looks at a value, which nothing that is recorded can do."""

    def forward(self, observations):
        return super().forward(observations) * float(observations.isfinite().all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_policy_that_cannot_be_recorded_is_told_and_breaks_nothing():
    env = make_env("InvertedPendulum-v5", "cuda")
    population, seeds = make_population(env), make_seeds()
    player = DevicePlayer(env)
    expected = rollout(player, population, seeds)
    looks = Looks(env.single_observation_space, env.single_action_space, hidden_sizes=(16,)).to("cuda")
    with pytest.raises(PlayError, match="the policy, or the task, cannot be recorded") as raised:
        rollout(player, Population(looks, population.noise, 0.3), seeds)
    assert "\n" not in str(raised.value)
    assert_agree(rollout(player, population, seeds), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_deterministic_engine_repeats_a_generation_to_the_last_bit():
    env = make_env("Humanoid-v5", "cuda", engine_kwargs={"deterministic": True})
    population, seeds = make_population(env), make_seeds()
    found, again = (rollout(DevicePlayer(env), population, seeds) for _ in range(2))
    assert torch.equal(found.returns, again.returns)
    assert torch.equal(found.lengths, again.lengths)


@pytest.mark.parametrize(
    ("message", "is_of_memory"),
    [
        ("Graph launch error: Warp CUDA error 2: out of memory (in function ...)", True),
        ("Failed to allocate 123 bytes on device 'cuda:0'", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("Failed to allocate memory during graph capture because memory pools are not supported", False),
        ("CUDA error: operation not permitted when stream is capturing", False),
    ],
)
def test_a_lack_of_memory_is_recognized_and_told_in_one_line(monkeypatch, message, is_of_memory):
    env = make_env("InvertedPendulum-v5", "cpu")
    population, player = make_population(env), DevicePlayer(env)

    def fail(loop):
        raise RuntimeError(f"{message}\nand more")

    monkeypatch.setattr(DeviceLoop, "between_steps", fail)
    if is_of_memory:
        told = f"out of memory with {ENVS} envs and {MEMBERS} members .*: RuntimeError: {re.escape(message)}$"
        with pytest.raises(PlayError, match=told):
            rollout(player, population, make_seeds())
    else:
        with pytest.raises(RuntimeError, match="and more"):
            rollout(player, population, make_seeds())


def test_physics_that_cannot_be_recorded_is_told_in_one_line(monkeypatch):
    env = make_env("InvertedPendulum-v5", "cpu")

    def fail(substeps):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(env.engine, "compile", fail)
    with pytest.raises(
        PlayError, match=r"^mujoco_warp cannot run the model here: RuntimeError: no kernel image$"
    ):
        rollout(DevicePlayer(env), make_population(env), make_seeds())


def test_an_environment_keeps_its_player():
    env, other = (make_env("InvertedPendulum-v5", "cpu") for _ in range(2))
    kept = DevicePlayer.of(env)
    evaluate(make_population(env), env, reset_seeds=make_seeds(), episode_limit=2)
    assert kept._last.seeds.tolist() == np.ravel(make_seeds()).tolist()  # it is the one that has played
    assert DevicePlayer.of(env) is kept
    assert DevicePlayer.of(other) is not kept


# --- what a CUDA graph needs -----------------------------------------------------------------------------


class Untouched(TorchDispatchMode):
    """Refuses every operation that has to wait for a value, and so cannot be recorded."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique",
        "unique_dim",
        "bincount",
        "is_nonzero",
        "equal",
        "repeat_interleave",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        assert name.removesuffix("2") not in self.WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(each is None or each.dtype != torch.bool for each in args[1]), "a mask as an index"
        return function(*args, **(kwargs or {}))


def make_loop(
    family=Flipout(),  # noqa: B008 - it is frozen
    policy_class=MLPPolicy,
    env_id="Humanoid-v5",
    device="cpu",
):
    env = make_env(env_id, device)
    population = make_population(env, family, policy_class=policy_class)
    starts = starts_of(env, seeds := np.array(make_seeds()))
    noise = DeviceActionNoise(0.1, env.single_action_space, seeds.ravel(), device)
    members = np.arange(population.size)
    return env, DeviceLoop(env.engine, env.checked_task, population, starts, members, 25, noise)


class Convolutional(nn.Module):
    """Not row-wise: it runs under vmap."""

    def __init__(self, observation_space, action_space, **_):
        super().__init__()
        self.normalizer = MLPPolicy(observation_space, action_space).normalizer
        self.conv = nn.Conv1d(1, 2, 5, stride=5)
        self.linear = nn.LazyLinear(action_space.shape[0])
        self.forward(torch.zeros(1, *observation_space.shape))

    def forward(self, observations):
        return self.linear(self.conv(self.normalizer(observations).unsqueeze(1)).tanh().flatten(1))


def stacked(observation_space, action_space, **options):
    inside = GRUPolicy(stacked_space(observation_space, 3), action_space, **options)
    return StackedPolicy(inside, observation_space, 3)


@pytest.mark.parametrize("policy_class", [MLPPolicy, GRUPolicy, LSTMPolicy, Convolutional, stacked])
@pytest.mark.parametrize("family", [Flipout(), Flipout(2), LowRank(2)], ids=str)
def test_nothing_between_two_steps_waits_for_a_value_or_moves_in_memory(family, policy_class):
    env, loop = make_loop(family, policy_class)
    env.engine.advance(env.task.frame_skip)
    loop.between_steps()  # whatever is set up once

    def places():
        kept = {name: value for name, value in vars(loop).items() if isinstance(value, torch.Tensor)}
        state = loop._recurrent._state if loop._recurrent else []
        return {name: value.data_ptr() for name, value in [*kept.items(), *enumerate(state)]}

    before = places()
    for _ in range(3):
        env.engine.advance(env.task.frame_skip)
        with Untouched():
            loop.between_steps()
    assert places() == before
    assert len(before) > 10


def test_the_check_sees_what_waits():
    values = torch.arange(3)
    looks = [
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: values.__setitem__(values > 1, 0),
        lambda: bool(values.any()),
        lambda: torch.equal(values, values),
        lambda: torch.unique(values),
        lambda: values.repeat_interleave(values),
    ]
    for look in looks:
        with pytest.raises(AssertionError), Untouched():
            look()


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_no_task_looks_at_values(env_id):
    task = CheckedTask(TASKS[env_id]())
    engine = WarpEngine(task.task.model, 3, task.fields, "cpu")
    fields, actions = engine.fields, engine.ctrl
    task.locate(fields)
    with Untouched():
        here = task.locate(fields)
        task.reward(here, here, fields, actions)
        task.terminated(fields)
        task.observe(fields, torch.float32)
