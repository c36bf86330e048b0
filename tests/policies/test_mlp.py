"""Policies: actions of every kind, initial weights, saved state, and the spaces they refuse."""

import io
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.config import PolicyConfig
from es_flipout.normalization import RunningStatistics
from es_flipout.perturbations import Flipout, Independent, Perturbation
from es_flipout.policies import ACTIVATIONS, MLPPolicy, make_action_head, make_policy
from es_flipout.population import Population

LOW, HIGH = torch.tensor([-1.0, 0.5, -3.0]), torch.tensor([1.0, 0.75, 5.0])
MIDDLE, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2
VECTOR = spaces.Box(-np.inf, np.inf, (4,))
TORQUES = spaces.Box(LOW.numpy(), HIGH.numpy())


def build(seed: int = 0, **options: object) -> MLPPolicy:
    return MLPPolicy(VECTOR, TORQUES, generator=torch.Generator().manual_seed(seed), **options)


def experienced(seed: int = 0, **options: object) -> MLPPolicy:
    policy = build(seed, **options)
    seen = RunningStatistics(4)
    seen.update(torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.5, -3.0, 8.0], [2.0, 0.0, 0.0, 0.0]]))
    policy.normalizer.merge(seen)
    return policy


def observations(rows: int = 20, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, 4, generator=torch.Generator().manual_seed(9))


def linears(policy: MLPPolicy) -> list[nn.Linear]:
    return [layer for layer in policy.network if isinstance(layer, nn.Linear)]


class TestForward:
    @pytest.mark.parametrize(
        ("activation", "function"),
        [
            ("tanh", np.tanh),
            ("relu", lambda x: np.maximum(x, 0.0)),
            ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
            ("silu", lambda x: x / (1.0 + np.exp(-x))),
        ],
    )
    def test_matches_numpy(self, activation: str, function: object) -> None:
        policy = experienced(hidden_sizes=(6, 5), activation=activation, observation_clip=1.5).double()
        with torch.no_grad():
            for layer in linears(policy):
                layer.weight.normal_(generator=torch.Generator().manual_seed(4))
                layer.bias.normal_(generator=torch.Generator().manual_seed(5))
        rows = observations(scale=5.0).double()
        normalizer = policy.normalizer
        deviation = np.sqrt(normalizer.m2.numpy() / 3)
        hidden = np.clip((rows.numpy() - normalizer.mean.numpy()) / deviation, -1.5, 1.5)
        *inner, last = linears(policy)
        for layer in inner:
            hidden = function(hidden @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
        outputs = np.tanh(hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy())
        expected = MIDDLE.double().numpy() + outputs * HALF.double().numpy()
        np.testing.assert_allclose(policy(rows).detach().numpy(), expected, rtol=1e-10, atol=1e-12)

    def test_actions_fill_their_range_and_stay_inside(self) -> None:
        policy = build(normalize_observations=False)
        with torch.no_grad():
            for layer in linears(policy):
                layer.weight.mul_(1e4)
        actions = policy(observations(200, 100.0)).detach()
        assert (actions >= LOW).all()
        assert (actions <= HIGH).all()
        torch.testing.assert_close(actions.amin(0), LOW)
        torch.testing.assert_close(actions.amax(0), HIGH)

    @pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
    def test_initial_actions_are_near_the_middle(self, activation: str) -> None:
        actions = build(activation=activation, hidden_sizes=(64, 64))(observations(500)).detach()
        assert ((actions - MIDDLE).abs() < 0.1 * HALF).all()
        assert (actions.std(0) > 0).all()  # near the middle, but not deaf to the observation

    def test_observations_are_standardised_inside(self) -> None:
        policy, plain = experienced(), build(normalize_observations=False)
        plain.network.load_state_dict(policy.network.state_dict())
        mean, deviation = policy.normalizer.mean.float(), (policy.normalizer.m2 / 3).sqrt().float()
        rows = observations()
        torch.testing.assert_close(policy(mean + deviation * rows), plain(rows))
        assert plain.normalizer is None


class TestInitialWeights:
    def test_hidden_weights_are_orthogonal_with_the_gain_of_their_activation(self) -> None:
        for activation, gain in (("tanh", 1.0), ("relu", 2.0), ("elu", 2.0), ("silu", 2.0)):  # gain²
            first, second, last = linears(build(activation=activation, hidden_sizes=(8, 8)))
            torch.testing.assert_close(first.weight.T @ first.weight, gain * torch.eye(4))
            torch.testing.assert_close(second.weight @ second.weight.T, gain * torch.eye(8))
            torch.testing.assert_close(last.weight @ last.weight.T, 1e-4 * torch.eye(3))

    def test_biases_are_zero(self) -> None:
        assert all((layer.bias == 0).all() for layer in linears(build()))

    def test_the_generator_alone_decides_them(self) -> None:
        torch.manual_seed(1)
        one = build(seed=3)
        torch.manual_seed(2)
        same, other = build(seed=3), build(seed=4)
        for a, b, c in zip(linears(one), linears(same), linears(other), strict=True):
            assert torch.equal(a.weight, b.weight)
            assert not torch.equal(a.weight, c.weight)

    def test_no_hidden_layer_is_a_linear_policy(self) -> None:
        (layer,) = build(hidden_sizes=()).network
        assert layer.weight.shape == (3, 4)


class TestBoxActions:
    def head(self, low: list[float], high: list[float], bounds: str) -> nn.Module:
        return make_action_head(spaces.Box(np.float32(low), np.float32(high)), bounds)

    def test_rescaling_squashes_into_the_range(self) -> None:
        outputs = torch.tensor([[0.0, 0.0], [50.0, -50.0], [math.atanh(0.5), math.atanh(-0.25)]])
        actions = self.head([-1.0, 2.0], [3.0, 4.0], "rescale")(outputs)
        torch.testing.assert_close(actions, torch.tensor([[1.0, 3.0], [3.0, 2.0], [2.0, 2.75]]))

    def test_rescaled_actions_never_leave_the_range(self) -> None:
        # Ranges whose middle and reach do not add up to their ends in float32.
        low, high = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor(
            [[-1.0], [1.0]]
        )
        head = self.head(low.tolist(), high.tolist(), "rescale")
        assert ((head.middle + head.reach > high) | (head.middle - head.reach < low)).any()
        for outputs in (torch.full((1, 500), 50.0), torch.full((1, 500), -50.0)):
            actions = head(outputs)
            assert (actions >= low).all()
            assert (actions <= high).all()

    def test_clipping_cuts_off_at_the_bounds_there_are(self) -> None:
        outputs = torch.tensor([[-7.0, -7.0, -7.0, -7.0], [0.25, 0.25, 0.25, 0.25], [7.0, 7.0, 7.0, 7.0]])
        head = self.head([-1.0, -np.inf, 0.5, -np.inf], [1.0, 2.0, np.inf, np.inf], "clip")
        expected = [[-1.0, -7.0, 0.5, -7.0], [0.25, 0.25, 0.5, 0.25], [1.0, 2.0, 7.0, 7.0]]
        assert head(outputs).tolist() == expected

    @pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (-1.0, np.inf), (-np.inf, np.inf)])
    def test_an_infinite_range_cannot_be_rescaled_to(self, low: float, high: float) -> None:
        with pytest.raises(ValueError, match=r"policy\.action_bounds to clip.*wrappers\.RescaleAction"):
            self.head([-1.0, low], [1.0, high], "rescale")

    def test_actions_are_float32_within_a_float64_space(self) -> None:
        space = spaces.Box(-1.0, 1.0, (3,), np.float64)
        for bounds in ("rescale", "clip"):
            policy = MLPPolicy(VECTOR, space, action_bounds=bounds)
            assert policy(observations()).dtype == torch.float32

    def test_matrices_of_actions_are_refused(self) -> None:
        for space in (spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([[2, 2], [3, 3]])):
            with pytest.raises(ValueError, match=r"(?s)actions must be vectors.*wrappers\.TransformAction"):
                make_action_head(space)


class TestDiscreteActions:
    OUTPUTS = torch.tensor(
        [[0.1, 0.3, 0.2, -1.0, 5.0], [2.0, 1.0, 0.0, 0.5, 0.25], [1.0, 1.0, 0.0, 2.0, 2.0]]
    )

    def test_the_highest_output_wins_and_of_equal_ones_the_first(self) -> None:
        for start in (0, -2, 7):
            head = make_action_head(spaces.Discrete(5, start=start))
            actions = head(self.OUTPUTS)
            assert actions.tolist() == [4 + start, 0 + start, 3 + start]
            assert actions.dtype == torch.int64
            assert head.num_outputs == 5

    def test_multi_discrete_groups_choose_by_themselves(self) -> None:
        head = make_action_head(spaces.MultiDiscrete([3, 2]))
        assert head.num_outputs == 5
        assert head(self.OUTPUTS).tolist() == [[1, 1], [0, 0], [0, 0]]

    def test_multi_discrete_groups_count_from_their_start(self) -> None:
        head = make_action_head(spaces.MultiDiscrete([2, 1, 2], start=[10, -3, 1]))
        assert head(self.OUTPUTS).tolist() == [[11, -3, 2], [10, -3, 1], [10, -3, 1]]

    @pytest.mark.parametrize(
        "space",
        [spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4, 3], start=[0, 7, -1])],
        ids=str,
    )
    def test_every_action_is_in_the_space_and_can_be_reached(self, space: gym.Space) -> None:
        policy = MLPPolicy(VECTOR, space, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            policy.network[-1].weight.mul_(100.0)
        actions = policy(observations(500, 10.0)).numpy()
        assert all(action in space for action in actions)
        sizes = np.atleast_1d(getattr(space, "nvec", getattr(space, "n", None)))
        assert [len(np.unique(column)) for column in actions.reshape(500, -1).T] == sizes.tolist()

    @pytest.mark.parametrize("perturbation", [Flipout(), Independent()], ids=str)
    def test_members_choose_as_they_do_alone(self, perturbation: Perturbation) -> None:
        policy = MLPPolicy(VECTOR, spaces.MultiDiscrete([3, 2]), hidden_sizes=(6,)).double()
        noise = perturbation.sample(dict(policy.named_parameters()), 20, torch.Generator().manual_seed(1))
        population, rows = Population(policy, noise, 0.5), observations(20).double()
        alone = [
            torch.func.functional_call(policy, population.member(m), (rows[m : m + 1],)) for m in range(20)
        ]
        actions = population.select(torch.arange(20))(rows)
        assert torch.equal(actions, torch.cat(alone))
        assert len(actions.unique(dim=0)) > 3

    @pytest.mark.parametrize("space", [spaces.MultiBinary(3), spaces.Dict({"a": TORQUES})], ids=str)
    def test_other_actions_are_refused_with_what_helps(self, space: gym.Space) -> None:
        name = type(space).__name__
        with pytest.raises(
            ValueError, match=rf"^{name} actions are not supported.*wrappers\.TransformAction"
        ):
            MLPPolicy(VECTOR, space)


class TestStateDict:
    def test_round_trip_restores_actions_and_moments(self) -> None:
        policy, restored = experienced(seed=0), build(seed=1)
        rows = observations()
        assert not torch.equal(policy(rows), restored(rows))
        file = io.BytesIO()
        torch.save(policy.state_dict(), file)
        file.seek(0)
        restored.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(policy(rows), restored(rows))
        for name in ("count", "mean", "m2"):
            moment = getattr(restored.normalizer, name)
            assert torch.equal(moment, getattr(policy.normalizer, name))
            assert moment.dtype == torch.float64
        assert restored.normalizer.count == 3

    def test_action_range_travels_too(self) -> None:
        policy = build()
        other = MLPPolicy(VECTOR, spaces.Box(0.0, 1.0, (3,)))
        other.load_state_dict(policy.state_dict())
        assert torch.equal(policy(observations()), other(observations()))

    def test_moments_are_not_parameters(self) -> None:
        # A population perturbs every parameter, and the moments must be the same for all members.
        assert {name.split(".")[0] for name, _ in build().named_parameters()} == {"network"}


class TestMakePolicy:
    def test_follows_the_configuration(self) -> None:
        config = PolicyConfig(
            hidden_sizes=[7, 6], activation="silu", observation_clip=2.0, action_bounds="clip"
        )
        policy = make_policy(config, VECTOR, TORQUES, torch.Generator().manual_seed(0))
        assert [tuple(layer.weight.shape) for layer in linears(policy)] == [(7, 4), (6, 7), (3, 6)]
        assert sum(isinstance(layer, ACTIVATIONS["silu"]) for layer in policy.network) == 2
        assert policy.normalizer.clip == 2.0
        assert torch.equal(policy.head.low, LOW)
        assert torch.equal(policy.head.high, HIGH)
        assert policy.head.bounds == "clip"
        expected = build(hidden_sizes=(7, 6), activation="silu")
        assert torch.equal(linears(policy)[0].weight, linears(expected)[0].weight)

    def test_linear_has_no_hidden_layer(self) -> None:
        policy = make_policy(PolicyConfig(kind="linear", hidden_sizes=[64, 64]), VECTOR, TORQUES)
        assert [tuple(layer.weight.shape) for layer in linears(policy)] == [(3, 4)]

    def test_normalisation_can_be_left_out(self) -> None:
        assert make_policy(PolicyConfig(normalize_observations=False), VECTOR, TORQUES).normalizer is None

    @pytest.mark.parametrize(
        ("space", "named"),
        [
            (spaces.Box(0, 255, (8, 8, 3), np.uint8), r"Box observations of shape \(8, 8, 3\)"),
            (spaces.Box(-1.0, 1.0, ()), r"Box observations of shape \(\)"),
            (spaces.Discrete(5), "Discrete observations"),
            (spaces.Dict({"position": VECTOR}), "Dict observations"),
            (spaces.Tuple([VECTOR, VECTOR]), "Tuple observations"),
        ],
        ids=lambda value: str(value),
    )
    def test_observations_that_are_no_vector_are_refused(self, space: gym.Space, named: str) -> None:
        with pytest.raises(ValueError, match=rf"^{named} are not supported.*wrappers\.FlattenObservation"):
            make_policy(PolicyConfig(), space, TORQUES)

    def test_an_integer_observation_is_a_vector_too(self) -> None:
        policy = make_policy(PolicyConfig(), spaces.Box(0, 255, (4,), np.uint8), TORQUES)
        assert policy(observations()).shape == (20, 3)
