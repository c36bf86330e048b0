"""Recurrent policies in evaluations: each episode has its own state, from its first step to its last."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from playing import rollout
from torch import Tensor, nn

from es_flipout.envs import make_env, make_vec
from es_flipout.perturbations import Flipout
from es_flipout.policies import GRUPolicy, LSTMPolicy, make_action_head
from es_flipout.population import Population
from es_flipout.rollout import HostPlayer
from es_flipout.rollout.recurrence import RecurrentState
from es_flipout.run.build import official_scorer
from es_flipout.run.config import EnvConfig

MEMBERS = 10


class Elman(nn.Module):
    """h <- tanh(W x + U h), c <- c + h; the action is of both (Elman, 1990, and a sum)."""

    row_wise = True

    def __init__(self, observation_space: spaces.Box, action_space: gym.Space, size: int = 6) -> None:
        super().__init__()
        self.head = make_action_head(action_space)
        self.input = nn.Linear(observation_space.shape[0], size)
        self.recurrent = nn.Linear(size, size)
        self.output = nn.Linear(size, self.head.num_outputs)
        self.size = size

    def initial_state(self, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        like = self.input.weight
        return like.new_zeros(batch_size, self.size), {"sum": like.new_full((batch_size, self.size), 0.5)}

    def forward(self, observations: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        hidden, memory = state
        hidden = torch.tanh(self.input(observations) + self.recurrent(hidden))
        memory = {"sum": memory["sum"] + hidden}
        return self.head(self.output(hidden + 0.1 * memory["sum"])), (hidden, memory)


class PaysTheAction(gym.Env):
    """Shows its seed at first and 0 later, and pays the action; an episode of seed s has 1 + s % 7 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 + seed % 7
        return np.full(1, seed, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), float(action[0]), self.left == 0, False, {}


gym.register("PaysTheAction-v0", PaysTheAction)


class Counter(nn.Module):
    """Acts by the number of its step, 1, 2, 3 ..., and all that it has seen, whatever its weights."""

    row_wise = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.ones(batch_size, 1)

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen = state + observations
        return seen + 0 * self.linear(observations), seen + 1


def populate(policy: nn.Module, size: int = MEMBERS) -> Population:
    generator = torch.Generator().manual_seed(0)
    return Population(policy, Flipout().sample(dict(policy.named_parameters()), size, generator), 0.3)


def recurrent_population(env_id: str, make=Elman, **kwargs: object) -> Population:
    with make_env(env_id, **kwargs) as env, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return populate(make(env.observation_space, env.action_space))


def counted(seed: int, length: int) -> float:
    """Returns what Counter gets: seed + 1, seed + 2, ..., seed + length."""
    return length * seed + length * (length + 1) / 2


@pytest.mark.parametrize("sizes", [(1,), (3,), (20,), (2, 3)], ids=str)
def test_the_state_starts_anew_with_every_episode(sizes):
    seeds = np.random.default_rng(0).integers(0, 100, (MEMBERS, 2))
    envs = [make_vec("PaysTheAction-v0", size) for size in sizes]
    result = rollout(HostPlayer(*envs), populate(Counter()), seeds.tolist())
    lengths = 1 + seeds % 7
    assert result.lengths.tolist() == lengths.tolist()
    assert result.returns.tolist() == counted(seeds, lengths).tolist()


def test_a_limit_ends_the_state_too():
    env = make_vec("PaysTheAction-v0", 2)
    result = rollout(HostPlayer(env), populate(Counter()), range(MEMBERS), episode_limit=3)
    lengths = [min(1 + seed % 7, 3) for seed in range(MEMBERS)]
    assert result.returns.flatten().tolist() == list(map(counted, range(MEMBERS), lengths))


def test_the_scorer_keeps_a_state_for_each_episode():
    scorer = official_scorer(EnvConfig("PaysTheAction-v0"), 9)
    for _ in range(2):
        score = scorer.score(Counter(), seed=3)
        assert score.lengths.tolist() == [1 + seed % 7 for seed in range(3, 12)]
        assert score.returns.tolist() == list(map(counted, range(3, 12), score.lengths))
    scorer.close()


TASKS = {"CartPole-v1": {"max_episode_steps": 60}, "Hopper-v5": {"max_episode_steps": 60}}


class OneByOne(Elman):
    """The same, but run under vmap."""

    row_wise = False


def gated(make: type[GRUPolicy | LSTMPolicy]):
    return lambda *spaces: make(*spaces, hidden_sizes=[7], recurrent_size=6)


POLICIES = {"elman": Elman, "vmap": OneByOne, "gru": gated(GRUPolicy), "lstm": gated(LSTMPolicy)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("env_id", TASKS)
def test_envs_and_sizes_change_no_bit(env_id, policy):
    kwargs = TASKS[env_id]
    population = recurrent_population(env_id, POLICIES[policy], **kwargs)
    seeds = np.random.default_rng(1).integers(0, 1000, (MEMBERS, 2)).tolist()
    results = [
        rollout(HostPlayer(*(make_vec(env_id, size, **kwargs) for size in sizes)), population, seeds)
        for sizes in ((MEMBERS,), (1,), (3,), (2 * MEMBERS,), (4, 3))
    ]
    assert len(results[0].lengths.unique()) > 3
    for result in results[1:]:
        assert torch.equal(result.returns, results[0].returns)
        assert torch.equal(result.lengths, results[0].lengths)
        assert torch.equal(result.observations.m2, results[0].observations.m2)


def cartpole_lengths(policy: nn.Module, weights: list[dict[str, Tensor]]) -> list[int]:
    """Returns the length of the episode of seed i that the i-th weights play, in a plain loop."""
    lengths = []
    with make_env("CartPole-v1") as env, torch.no_grad():
        for seed, each in enumerate(weights):
            observation, _ = env.reset(seed=seed)
            state, length, over = policy.initial_state(1), 0, False
            while not over:
                arguments = torch.from_numpy(observation).unsqueeze(0), state
                action, state = torch.func.functional_call(policy, each, arguments)
                observation, _, terminated, truncated, _ = env.step(int(action))
                length, over = length + 1, terminated or truncated
            lengths.append(length)
    assert len(set(lengths)) > 3
    return lengths


def test_a_member_scores_what_it_scores_alone():
    population = recurrent_population("CartPole-v1")
    result = rollout(HostPlayer(make_vec("CartPole-v1", 4)), population, range(MEMBERS))
    weights = [population.member(member) for member in range(MEMBERS)]
    assert result.lengths.flatten().tolist() == cartpole_lengths(population.policy, weights)


def test_episodes_of_a_score_are_what_each_is_alone():
    population = recurrent_population("CartPole-v1")
    policy, weights = population.policy, population.member(3)
    policy.load_state_dict(weights)
    scorer = official_scorer(EnvConfig("CartPole-v1"), MEMBERS)
    assert scorer.score(policy, seed=0).lengths.tolist() == cartpole_lengths(policy, [weights] * MEMBERS)
    scorer.close()


class TestRecurrentState:
    def test_only_the_envs_that_act_move_on(self) -> None:
        states = RecurrentState(Counter(), 4)
        policy = Counter()
        assert states.act(policy, torch.zeros(4, 1), slice(None)).tolist() == [[1], [1], [1], [1]]
        assert states.act(policy, torch.zeros(2, 1), torch.tensor([1, 3])).tolist() == [[2], [2]]
        states.reset(torch.tensor([3, 0]))
        assert states.act(policy, torch.zeros(4, 1), slice(None)).tolist() == [[1], [3], [2], [1]]

    def test_a_state_may_be_overwritten_and_shared(self) -> None:
        class InPlace(nn.Module):
            def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
                return torch.zeros(batch_size, 1), torch.full((batch_size, 1), 5.0)

            def forward(self, observations: Tensor, state: tuple) -> tuple[Tensor, tuple]:
                both = state[0].add_(1)
                return both.clone(), (both, both)

        policy = InPlace()
        for count in (1, 2):
            states = RecurrentState(policy, count)
            for _ in range(2):
                assert states.act(policy, torch.zeros(count, 1), slice(None)).tolist() == [[1]] * count
                states.reset(torch.arange(count))
                assert [leaf.flatten().tolist() for leaf in states._state] == [[0.0] * count, [5.0] * count]

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (torch.zeros(3), r"must give tensors with the batch first, \[1, ...\], got torch.float32 \[3\]"),
            (torch.zeros(()), "must give tensors with the batch first"),
            ((torch.zeros(1, 2), None), "must give tensors with the batch first|got"),
            (nn.Parameter(torch.zeros(1, 2)), "must not depend on parameters"),
        ],
        ids=["batch", "scalar", "none", "learnt"],
    )
    def test_an_initial_state_of_another_kind_is_refused(self, state: object, message: str) -> None:
        policy = Counter()
        policy.initial_state = lambda batch_size: state
        with pytest.raises(ValueError, match=message):
            RecurrentState(policy, 3)

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: (state, state),
            lambda state: state.double(),
            lambda state: state[:1],
            lambda state: None,
            lambda state: 3,
        ],
        ids=["structure", "dtype", "shape", "none", "number"],
    )
    def test_a_returned_state_of_another_kind_is_refused(self, change) -> None:
        states = RecurrentState(Counter(), 3)
        with pytest.raises(ValueError, match="must return a state like the one that it was given"):
            states.act(lambda observations, state: (state, change(state)), torch.zeros(3, 1), slice(None))
