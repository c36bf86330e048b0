"""MLP and linear policies: outputs, initial weights, saved state."""

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.normalization import RunningStatistics
from es_flipout.policies import LinearPolicy, MLPPolicy

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
        assert (actions.std(0) > 0).all()  # near the middle, but dependent on the observation

    def test_observations_are_standardized_inside(self) -> None:
        policy, plain = experienced(), build(normalize_observations=False)
        plain.network.load_state_dict(policy.network.state_dict())
        mean, deviation = policy.normalizer.mean.float(), (policy.normalizer.m2 / 3).sqrt().float()
        rows = observations()
        torch.testing.assert_close(policy(mean + deviation * rows), plain(rows))
        assert plain.normalizer is None

    def test_rows_may_have_any_leading_dimensions(self) -> None:
        policy, rows = experienced(), observations(20)
        actions = policy(rows)
        assert torch.equal(policy(rows.view(5, 2, 2, 4)), actions.view(5, 2, 2, 3))
        torch.testing.assert_close(policy(rows[3]), actions[3])


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
        (same,) = LinearPolicy(VECTOR, TORQUES, generator=torch.Generator().manual_seed(0)).network
        assert torch.equal(layer.weight, same.weight)

    @pytest.mark.parametrize("activation", ["tanh", "relu"])
    def test_normc_rows_have_norm_one_and_the_last_a_hundredth(self, activation: str) -> None:
        policy = build(init="normc", activation=activation, hidden_sizes=(50, 8))
        first, second, last = linears(policy)
        for layer, norm in ((first, 1.0), (second, 1.0), (last, 0.01)):
            torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((len(layer.weight),), norm))
            assert (layer.bias == 0).all()
        # Gaussian directions: of 50 rows in 4 dimensions the mean is near 0 and no two are orthogonal.
        assert first.weight.mean(dim=0).abs().max() < 0.25
        assert ((first.weight @ first.weight.T).abs() > 1e-6).all()
        again = build(init="normc", activation=activation, hidden_sizes=(50, 8))
        assert torch.equal(linears(again)[1].weight, second.weight)


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

    def test_the_action_range_is_saved_too(self) -> None:
        policy = build()
        other = MLPPolicy(VECTOR, spaces.Box(0.0, 1.0, (3,)))
        other.load_state_dict(policy.state_dict())
        assert torch.equal(policy(observations()), other(observations()))

    def test_moments_are_not_parameters(self) -> None:
        # A population perturbs every parameter, and the moments must be the same for all members.
        assert {name.split(".")[0] for name, _ in build().named_parameters()} == {"network"}
