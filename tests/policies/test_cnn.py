"""CNNPolicy: images of either channel order and any dtype, sizes that fit, and invalid inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout.policies import CNNPolicy

ACTIONS = spaces.Discrete(5)
NATURE = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))
"""The stack of Mnih et al. (2015), for 84 x 84."""


def build(*shape: int, low: float = 0, high: float = 255, dtype: type = np.uint8, **options) -> CNNPolicy:
    space = spaces.Box(low, high, shape, dtype)
    return CNNPolicy(space, ACTIONS, generator=torch.Generator().manual_seed(0), **options)


def images(*shape: int, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, high, shape, generator=generator, dtype=torch.uint8)


def test_pixels_are_scaled_by_the_bounds_of_their_space():
    scaling = build(2, 3, 1, channel_order="last").scaling
    given = torch.tensor([0, 51, 102, 153, 204, 255], dtype=torch.uint8).view(1, 2, 3, 1)
    for each in (given, given.float()):
        assert scaling(each).dtype == torch.float32
        torch.testing.assert_close(
            scaling(each), torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).view(1, 1, 2, 3)
        )
    signed = build(1, 1, 8, low=-1.0, high=3.0, dtype=np.float32, channel_order="last").scaling
    assert signed(torch.full((1, 1, 1, 8), 1.0)).unique().tolist() == [0.5]


def test_each_pixel_may_have_its_own_bounds():
    low, high = np.zeros((3, 8, 8), np.float32), np.ones((3, 8, 8), np.float32)
    low[1], high[2] = -1.0, 0.0  # the last channel never changes
    scaling = CNNPolicy(spaces.Box(low, high), ACTIONS).scaling
    scaled = scaling(torch.zeros(2, 3, 8, 8))
    assert [scaled[:, channel].unique().tolist() for channel in range(3)] == [[0.0], [0.5], [0.0]]


def test_the_order_of_channels_changes_nothing():
    first, last = build(3, 8, 10), build(8, 10, 3)
    last.load_state_dict(first.state_dict())
    given = images(4, 3, 8, 10)
    outputs = [
        policy.network(policy.convolutions(policy.scaling(each)).flatten(1))
        for policy, each in ((first, given), (last, given.movedim(1, 3)))
    ]
    assert torch.equal(*outputs)
    assert len(outputs[0].unique(dim=0)) == 4
    assert torch.equal(first(given), last(given.movedim(1, 3)))


@pytest.mark.parametrize("shape", [(8, 10, 9), (3, 8, 3), (4, 84, 1)], ids=str)
def test_an_ambiguous_channel_order_is_refused(shape):
    with pytest.raises(ValueError, match=r"may have their channels first or last: .* channel_order to first"):
        build(*shape)
    for order, channels in (("first", shape[0]), ("last", shape[2])):
        assert build(*shape, channel_order=order).convolutions[0].in_channels == channels


@pytest.mark.parametrize(
    ("shape", "layers", "features"),
    [
        # Halved three times, rounded up: 8 4 2 1; 10 5 3 2; 28 14 7 4; 84 42 21 11; 1 1 1 1.
        ((8, 8, 1), None, 32 * 1),
        ((10, 10, 3), None, 32 * 2 * 2),
        ((28, 28, 1), None, 32 * 4 * 4),
        ((4, 84, 84), None, 32 * 11 * 11),
        ((1, 1, 5), None, 32),
        ((4, 84, 84), NATURE, 64 * 7 * 7),
    ],
    ids=str,
)
def test_the_default_fits_images_of_any_size(shape, layers, features):
    options = {} if layers is None else {"conv_layers": layers}
    if shape == (1, 1, 5):
        options["channel_order"] = "last"
    policy = build(*shape, hidden_sizes=(16,), **options)
    assert policy.network[0].in_features == features
    assert policy(images(2, *shape)).shape == (2,)


def test_a_kernel_that_does_not_fit_is_refused():
    message = r"conv_layers\[1\]: a kernel of 4 with a padding of 0 does not fit 1x1"
    with pytest.raises(ValueError, match=message):
        build(8, 8, 1, conv_layers=NATURE)


def test_initial_weights_are_orthogonal_and_repeat():
    policy, again = build(8, 8, 1, activation="relu"), build(8, 8, 1, activation="relu")
    for layer in policy.convolutions[2::2]:
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(len(rows)))  # gain² of ReLU
        assert (layer.bias == 0).all()
    for name, value in again.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value), name
    normc = build(8, 8, 1, init="normc").convolutions[0].weight
    torch.testing.assert_close(normc.flatten(1).norm(dim=1), torch.ones(16))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Box(0, 255, (8, 8), np.uint8),
            r"needs images, a Box of three dimensions, got .*\(8, 8\)",
        ),
        (spaces.Box(-np.inf, np.inf, (8, 8, 3)), "images must have finite bounds"),
        (spaces.Discrete(4), "Discrete observations are not supported"),
    ],
    ids=str,
)
def test_other_observations_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        CNNPolicy(space, ACTIONS)


def test_it_is_not_declared_row_wise():
    assert not hasattr(CNNPolicy, "row_wise")
