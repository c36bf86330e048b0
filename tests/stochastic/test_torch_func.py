"""A perturbed module under the caller's own torch.func: other weights, and many mini-batches in one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from es_flipout.stochastic import (
    AdditiveGaussian,
    DropConnect,
    LearnedGaussian,
    MultiplicativeGaussian,
    WeightDistribution,
    perturbed,
)

DISTRIBUTIONS = [MultiplicativeGaussian(1.0), AdditiveGaussian(1.0), DropConnect(), LearnedGaussian()]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv1d(3, 4, 2, dtype=torch.float64)
    return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(8, 2, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
def test_other_weights_take_the_place_of_the_modules_own(estimator):
    noisy = perturbed(network(), MultiplicativeGaussian(1.0), estimator=estimator)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    doubled = {name: 2 * value for name, value in noisy.named_parameters()}
    with noisy.frozen(seed=1):
        found = functional_call(noisy, doubled, (x,))
        with torch.no_grad():
            for value in noisy.parameters():
                value *= 2
        torch.testing.assert_close(found, noisy(x))


@pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
def test_mini_batches_side_by_side_have_the_gradients_of_one_after_the_other(estimator):
    noisy = perturbed(network(), MultiplicativeGaussian(1.0), estimator=estimator)
    weights = dict(noisy.named_parameters())
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64)

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(noisy, weights, (x,)).square().mean()

    with noisy.frozen(seed=1):
        found = torch.vmap(grad(loss), in_dims=(None, 0), randomness="same")(weights, x)
        for index in range(4):
            expected = torch.autograd.grad(noisy(x[index]).square().mean(), [*weights.values()])
            for one, other in zip(found.values(), expected, strict=True):
                torch.testing.assert_close(one[index], other)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_mini_batches_side_by_side_run_through_recurrent_layers(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(3, 4, batch_first=True, dtype=torch.float64)

        def forward(self, x):
            return self.layer(x)[0]

    noisy, x = perturbed(Reader(), MultiplicativeGaussian()), torch.randn(4, 5, 6, 3, dtype=torch.float64)
    with noisy.frozen(seed=1):
        found = torch.vmap(noisy, randomness="same")(x)
        torch.testing.assert_close(found, torch.stack([noisy(each) for each in x]))


@pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: type(each).__name__)
def test_mini_batches_side_by_side_can_have_draws_of_their_own(distribution: WeightDistribution, estimator):
    noisy = perturbed(network(), distribution, estimator=estimator)
    x = torch.randn(5, 3, 3, dtype=torch.float64).expand(4, 5, 3, 3)

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(noisy, weights, (x,)).square().mean()

    weights = dict(noisy.named_parameters())
    gradients = torch.vmap(grad(loss), in_dims=(None, 0), randomness="different")(weights, x)
    every = torch.cat([each.detach().flatten(1) for each in gradients.values()], dim=1)
    assert len(every.unique(dim=0)) == 4
