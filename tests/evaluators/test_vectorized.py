"""VectorizedEvaluator: what it says of a member is what that member does alone, officially."""

from __future__ import annotations

import copy
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import make_vec
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.evaluators import EvaluationStoppedError, VectorizedEvaluator
from es_flipout.perturbations import Flipout
from es_flipout.policies import MLPPolicy
from es_flipout.population import Population

TOLERANCE = 1e-9
"""The batched forward and the written-out one differ by float64 rounding, 1e-16; actions are then rounded
to the action space's float32, so both drive the same physics to the last bit, save for the one action in
some 1e8 that the difference carries over a rounding boundary."""

TASKS = {
    # Falls after some 10 to 40 steps: members of very different lengths, ended by both flags.
    "InvertedPendulum-v5": {"max_episode_steps": 30},
    "Humanoid-v5": {"max_episode_steps": 40},
    "HalfCheetah-v5": {"max_episode_steps": 12},
}
ON_EACH_TASK = pytest.mark.parametrize("env_id", sorted(TASKS))
MEMBERS = 12
SEEDS = [900, 17, 350, 2, 111, 64, 5, 808, 23, 42, 707, 1]
"""Reset seeds of the members, in no order, so that a mix-up cannot go unseen."""


def native(env_id, slots, *, threads=2, dtype=torch.float64):
    return make_vec(env_id, slots, dtype=dtype, threads=threads, **TASKS[env_id])


def population_for(env, size=MEMBERS, *, sigma=0.3, family=Flipout(num_bases=2)):  # noqa: B008 - frozen
    generator = torch.Generator().manual_seed(0)
    space = env.single_action_space
    policy = MLPPolicy(
        env.single_observation_space.shape[0],
        torch.from_numpy(space.low),
        torch.from_numpy(space.high),
        hidden_sizes=(8,),
        generator=generator,
    ).to(env.unwrapped.dtype)
    return Population(policy, family.sample(dict(policy.named_parameters()), size, generator), sigma)


def official_episode(env, population, member, seed):
    """Rolls one member out with its written-out weights; returns its return, length and observations."""
    weights = population.member(member)
    observation, _ = env.reset(seed=seed)
    total, observations, ended = 0.0, [], False
    while not ended:
        observations.append(observation)
        row = torch.from_numpy(observation).unsqueeze(0)
        action = torch.func.functional_call(population.policy, weights, (row,))[0]
        observation, reward, terminated, truncated, _ = env.step(action.to(torch.float32).numpy())
        total += reward
        ended = terminated or truncated
    return total, len(observations), np.stack(observations)


def official_episodes(env_id, population):
    with deprecations_silenced():
        env = gym.make(env_id, **TASKS[env_id])
    with torch.no_grad():
        return [official_episode(env, population, m, SEEDS[m]) for m in range(population.size)]


class BonusOnEveryRow(gym.vector.VectorWrapper):
    """Adds 1 to every reward, those of frozen rows and empty slots included."""

    def step(self, actions):
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        return observations, rewards + 1.0, terminated, truncated, info


class CountSteps(gym.vector.VectorWrapper):
    """Counts the calls of step."""

    steps = 0

    def step(self, actions):
        self.steps += 1
        return self.env.step(actions)


class BlowsUpOnce(gym.vector.VectorWrapper):
    """Shows NaN to the member in slot 2 once, after its third step."""

    steps = 0

    def step(self, actions):
        observations, *rest = self.env.step(actions)
        self.steps += 1
        if self.steps == 3:
            observations[2] = torch.nan
        return observations, *rest


@ON_EACH_TASK
@pytest.mark.parametrize("slots", [4, 16], ids=["fewer-slots", "more-slots"])
def test_a_member_scores_what_it_scores_alone_in_the_official_environment(env_id, slots):
    env = native(env_id, slots)
    population = population_for(env)
    expected = official_episodes(env_id, population)
    result = VectorizedEvaluator(env).evaluate(population, SEEDS)
    fitness = [total for total, _, _ in expected]
    np.testing.assert_allclose(result.fitness.numpy(), fitness, rtol=TOLERANCE, atol=TOLERANCE)
    assert result.lengths.tolist() == [length for _, length, _ in expected]
    if env_id != "HalfCheetah-v5":
        assert len(set(result.lengths.tolist())) > 2  # slots were refilled at different times


@ON_EACH_TASK
def test_observation_statistics_are_of_exactly_what_members_acted_on(env_id):
    env = native(env_id, 5)
    population = population_for(env)
    seen = np.concatenate([rows for _, _, rows in official_episodes(env_id, population)])
    statistics = VectorizedEvaluator(env).evaluate(population, SEEDS).observations
    assert statistics.count.item() == len(seen)
    np.testing.assert_allclose(statistics.mean.numpy(), seen.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), seen.var(axis=0), rtol=1e-9, atol=1e-12)


def test_a_simulation_that_blows_up_spoils_its_own_fitness_alone():
    env = native("HalfCheetah-v5", MEMBERS)
    population = population_for(env)
    plain = VectorizedEvaluator(env).evaluate(population, SEEDS)
    result = VectorizedEvaluator(BlowsUpOnce(env)).evaluate(population, SEEDS)
    others = [member for member in range(MEMBERS) if member != 2]
    assert result.fitness[2].isnan()  # by the control cost of what it did on seeing NaN
    assert torch.equal(result.fitness[others], plain.fitness[others])
    assert result.observations.mean.isfinite().all()
    assert result.observations.m2.isfinite().all()
    assert result.observations.count == plain.observations.count - 1


@ON_EACH_TASK
def test_slot_count_changes_no_score(env_id):
    def score(slots):
        env = native(env_id, slots)
        return VectorizedEvaluator(env).evaluate(population_for(env), SEEDS)

    expected = score(1)
    for slots in (4, 16, MEMBERS):
        result = score(slots)
        torch.testing.assert_close(result.fitness, expected.fitness, rtol=TOLERANCE, atol=TOLERANCE)
        assert result.lengths.tolist() == expected.lengths.tolist()
        assert result.env_steps == expected.env_steps


@pytest.mark.parametrize("slots", [4, 16])
def test_reward_after_the_end_of_an_episode_never_counts(slots):
    env = native("Humanoid-v5", slots)
    population = population_for(env)
    plain = VectorizedEvaluator(env).evaluate(population, SEEDS)
    result = VectorizedEvaluator(BonusOnEveryRow(env)).evaluate(population, SEEDS)
    assert len(set(result.lengths.tolist())) > 2
    # One bonus for each step of the member's own episode, none for its slot's idle time.
    torch.testing.assert_close(result.fitness, plain.fitness + result.lengths, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("members", "slots", "slot_steps"),
    [
        # Upright for 3 steps each. Members 0 1 | 2 3 | 4 -: three rounds of 3 steps in 2 slots.
        pytest.param(5, 2, 18, id="last-round-half-empty"),
        pytest.param(4, 2, 12, id="always-full"),
        # Two of five slots never get a member.
        pytest.param(3, 5, 15, id="more-slots-than-members"),
    ],
)
def test_counts_live_steps_and_idle_slots(members, slots, slot_steps):
    env = make_vec("InvertedPendulum-v5", slots, threads=1, max_episode_steps=3)
    population = population_for(env, members, sigma=0.01, family=Flipout(mirrored=False))
    result = VectorizedEvaluator(env).evaluate(population, SEEDS[:members])
    assert result.lengths.tolist() == [3] * members
    assert result.fitness.tolist() == [3.0] * members
    assert result.env_steps == 3 * members
    assert result.slot_steps == slot_steps
    assert result.live_share == pytest.approx(3 * members / slot_steps)


def test_each_member_gets_its_own_seed():
    env = native("HalfCheetah-v5", 4)
    population = population_for(env)
    evaluator = VectorizedEvaluator(env)
    result = evaluator.evaluate(population, SEEDS)
    swapped = SEEDS.copy()
    swapped[1], swapped[10] = swapped[10], swapped[1]
    other = evaluator.evaluate(population, swapped)
    assert (result.fitness != other.fitness).nonzero().flatten().tolist() == [1, 10]


def test_evaluating_again_gives_the_same():
    env = native("Humanoid-v5", 5)
    population = population_for(env)
    evaluator = VectorizedEvaluator(env)
    first, second = evaluator.evaluate(population, SEEDS), evaluator.evaluate(population, SEEDS)
    assert torch.equal(first.fitness, second.fitness)
    assert torch.equal(first.observations.m2, second.observations.m2)


def test_evaluating_changes_neither_policy_nor_noise():
    env = native("InvertedPendulum-v5", 5)
    population = population_for(env)
    before = copy.deepcopy(population)
    VectorizedEvaluator(env).evaluate(population, SEEDS)
    for name, value in before.policy.state_dict().items():
        assert torch.equal(population.policy.state_dict()[name], value), name
    for name, value in before.member(3).items():
        assert torch.equal(population.member(3)[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thread_count_changes_no_bit(dtype):
    def evaluate(threads):
        env = native("Humanoid-v5", 9, threads=threads, dtype=dtype)
        return VectorizedEvaluator(env).evaluate(population_for(env), SEEDS)

    one, two = evaluate(1), evaluate(2)
    assert torch.equal(one.fitness, two.fitness)
    assert torch.equal(one.lengths, two.lengths)
    assert torch.equal(one.observations.mean, two.observations.mean)
    assert torch.equal(one.observations.m2, two.observations.m2)


def test_a_stop_is_obeyed_before_the_next_step_and_leaves_the_environment_usable():
    env = CountSteps(native("InvertedPendulum-v5", 5))
    population = population_for(env)
    evaluator = VectorizedEvaluator(env)
    asked = itertools.count()
    with pytest.raises(EvaluationStoppedError):
        evaluator.evaluate(population, SEEDS, should_stop=lambda: next(asked) == 4)
    assert env.steps == 4
    fresh = VectorizedEvaluator(native("InvertedPendulum-v5", 5)).evaluate(population, SEEDS)
    assert torch.equal(evaluator.evaluate(population, SEEDS).fitness, fresh.fitness)


def test_an_environment_that_resets_itself_is_refused():
    env = gym.make_vec("InvertedPendulum-v5", num_envs=2, vectorization_mode="sync")
    with pytest.raises(ValueError, match=r"autoreset mode must be DISABLED, got .*NEXT_STEP"):
        VectorizedEvaluator(env)


def test_observations_that_are_no_vectors_are_refused():
    env = gym.make_vec(
        "InvertedPendulum-v5",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.DISABLED},
        wrappers=[lambda env: gym.wrappers.ReshapeObservation(env, (2, 2))],
    )
    with pytest.raises(ValueError, match="observations must be vectors, got Box"):
        VectorizedEvaluator(env)


@pytest.mark.parametrize("count", [MEMBERS - 1, MEMBERS + 1])
def test_a_wrong_number_of_seeds_is_refused(count):
    env = native("InvertedPendulum-v5", 2)
    with pytest.raises(ValueError, match=f"{count} reset seeds for {MEMBERS} members"):
        VectorizedEvaluator(env).evaluate(population_for(env), range(count))
