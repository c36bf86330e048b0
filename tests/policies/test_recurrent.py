"""Recurrent policies against the equations of their cells in NumPy, and their states and initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout.normalization import RunningStatistics
from es_flipout.policies import GRUPolicy, LSTMPolicy, RecurrentPolicy

VECTOR = spaces.Box(-np.inf, np.inf, (4,))
TORQUES = spaces.Box(-2.0, 2.0, (3,))
WIDTH = 5
BOTH = pytest.mark.parametrize("kind", [GRUPolicy, LSTMPolicy])


def build(kind: type[RecurrentPolicy], seed: int = 0, **options: object) -> RecurrentPolicy:
    options = {"recurrent_size": WIDTH, **options}
    return kind(VECTOR, TORQUES, generator=torch.Generator().manual_seed(seed), **options)


def experienced(kind: type[RecurrentPolicy], **options: object) -> RecurrentPolicy:
    """Returns a float64 policy of random weights that has seen some observations."""
    policy = build(kind, **options).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=generator)
    seen = RunningStatistics(4)
    seen.update(torch.randn(10, 4, generator=generator, dtype=torch.float64) * 3 + 1)
    policy.normalizer.merge(seen)
    return policy


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gates(policy: RecurrentPolicy, x: np.ndarray, h: np.ndarray) -> tuple[list, list]:
    """Returns the contributions of the input and of the state to each gate."""
    cell = {name: value.detach().numpy() for name, value in policy.cell.named_parameters()}
    from_input = x @ cell["weight_ih"].T + cell["bias_ih"]
    from_state = h @ cell["weight_hh"].T + cell["bias_hh"]
    count = len(cell["bias_ih"]) // WIDTH
    return np.split(from_input, count, axis=1), np.split(from_state, count, axis=1)


def gru(policy: GRUPolicy, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (xr, xz, xn), (hr, hz, hn) = gates(policy, x, h)
    update, new = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
    h = (1 - update) * new + update * h
    return h, h


def lstm(policy: LSTMPolicy, x: np.ndarray, state: tuple) -> tuple[np.ndarray, tuple]:
    h, c = state
    i, f, g, o = (a + b for a, b in zip(*gates(policy, x, h), strict=True))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


@pytest.mark.parametrize(("kind", "cell"), [(GRUPolicy, gru), (LSTMPolicy, lstm)], ids=["gru", "lstm"])
@pytest.mark.parametrize("hidden_sizes", [(), (6, 7)], ids=str)
def test_three_steps_match_numpy(kind, cell, hidden_sizes):
    policy = experienced(kind, hidden_sizes=hidden_sizes)
    rows = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    state, zeros = policy.initial_state(20), np.zeros((20, WIDTH))
    expected_state = zeros if kind is GRUPolicy else (zeros, zeros)
    mean, deviation = policy.normalizer.mean.numpy(), np.sqrt(policy.normalizer.m2.numpy() / 10)
    weight, bias = (each.detach().numpy() for each in (policy.output.weight, policy.output.bias))
    for observations in rows:
        actions, state = policy(observations, state)
        features = (observations.numpy() - mean) / deviation
        for layer in policy.encoder[::2]:
            features = np.tanh(features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
        hidden, expected_state = cell(policy, features, expected_state)
        expected = 2 * np.tanh(hidden @ weight.T + bias)
        np.testing.assert_allclose(actions.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    leaves = [state] if kind is GRUPolicy else state
    wanted = [expected_state] if kind is GRUPolicy else expected_state
    for leaf, value in zip(leaves, wanted, strict=True):
        np.testing.assert_allclose(leaf.detach().numpy(), value, rtol=1e-10, atol=1e-12)


@BOTH
def test_rows_are_independent_and_may_have_leading_dimensions(kind):
    assert kind.row_wise
    policy = experienced(kind)
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    _, state = policy(rows, policy.initial_state(6))
    actions, _ = policy(rows, state)

    def each(state, change):
        return change(state) if isinstance(state, torch.Tensor) else tuple(map(change, state))

    for shape in ((3, 2), (1, 6), (6, 1)):
        shaped, following = policy(
            rows.view(*shape, 4), each(state, lambda leaf, shape=shape: leaf.view(*shape, WIDTH))
        )
        torch.testing.assert_close(shaped.view(6, 3), actions)
        each(following, lambda leaf, shape=shape: leaf.view(*shape, WIDTH))  # which they keep
    alone, _ = policy(rows[2:3], each(state, lambda leaf: leaf[2:3]))
    torch.testing.assert_close(alone, actions[2:3])


@BOTH
def test_the_state_begins_at_zero_in_the_policys_dtype(kind):
    state = build(kind).double().initial_state(3)
    leaves = [state] if kind is GRUPolicy else list(state)
    assert len(leaves) == (1 if kind is GRUPolicy else 2)
    for leaf in leaves:
        assert leaf.dtype == torch.float64
        assert leaf.tolist() == [[0.0] * WIDTH] * 3
        assert not leaf.requires_grad


@BOTH
def test_initial_weights_are_orthogonal_by_gate(kind):
    policy = build(kind, hidden_sizes=(8,))
    for gate in policy.cell.weight_hh.detach().split(WIDTH):
        torch.testing.assert_close(gate @ gate.T, torch.eye(WIDTH))
    for gate in policy.cell.weight_ih.detach().split(WIDTH):  # 5 x 8
        torch.testing.assert_close(gate @ gate.T, torch.eye(WIDTH))
    torch.testing.assert_close(policy.output.weight @ policy.output.weight.T, 1e-4 * torch.eye(3))
    assert (policy.cell.bias_hh == 0).all()
    forget = torch.zeros(4 * WIDTH)
    forget[WIDTH : 2 * WIDTH] = 1.0
    expected = forget if kind is LSTMPolicy else torch.zeros(3 * WIDTH)
    assert torch.equal(policy.cell.bias_ih, expected)


@BOTH
def test_initial_weights_by_normc_repeat(kind):
    policy, same, other = (build(kind, seed, init="normc") for seed in (3, 3, 4))
    torch.testing.assert_close(policy.cell.weight_hh.norm(dim=1), torch.ones(len(policy.cell.weight_hh)))
    for name, value in same.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value), name
    assert not torch.equal(policy.cell.weight_ih, other.cell.weight_ih)


@BOTH
def test_discrete_actions_and_no_normalizer(kind):
    policy = kind(VECTOR, spaces.Discrete(4, start=3), recurrent_size=WIDTH, normalize_observations=False)
    assert policy.normalizer is None
    actions, _ = policy(torch.randn(30, 4), policy.initial_state(30))
    assert actions.dtype == torch.int64
    assert set(actions.tolist()) <= {3, 4, 5, 6}


@BOTH
def test_images_are_refused(kind):
    with pytest.raises(ValueError, match="a policy needs vectors"):
        kind(spaces.Box(0, 255, (8, 8, 3), np.uint8), TORQUES)
