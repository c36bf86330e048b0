"""Means and variances of the weights over many draws, and the closed-form divergence."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from es_flipout.stochastic import (
    AdditiveGaussian,
    DropConnect,
    LearnedGaussian,
    MultiplicativeGaussian,
    PerturbedModule,
    WeightDistribution,
    perturbed,
)
from es_flipout.stochastic.estimators import Estimator

DRAWS, EXAMPLES = 800, 4

MOMENTS = {  # mean and standard deviation of a weight w
    MultiplicativeGaussian(0.5): (lambda w: w, lambda w: 0.5 * w.abs()),
    AdditiveGaussian(0.3): (lambda w: w, lambda w: torch.full_like(w, 0.3)),
    DropConnect(): (lambda w: w / 2, lambda w: w.abs() / 2),
    DropConnect(0.2): (lambda w: 0.8 * w, lambda w: 0.4 * w.abs()),  # sqrt(0.2 * 0.8) = 0.4
    LearnedGaussian(0.3): (lambda w: w, lambda w: torch.full_like(w, 0.3)),
}


def sampled(distribution: WeightDistribution, estimator: Estimator) -> tuple[nn.Linear, dict[str, Tensor]]:
    """Returns a layer, and DRAWS x EXAMPLES of its weights: [D, N, *shape] by name."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    noisy = perturbed(layer, distribution, estimator=estimator).double()
    drawn = [noisy.weights(EXAMPLES, seed) for seed in range(DRAWS)]
    return layer, {name: torch.stack([each[name] for each in drawn]).detach() for name in drawn[0]}


@pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
@pytest.mark.parametrize("distribution", MOMENTS, ids=str)
def test_weights_have_the_mean_and_variance_of_the_distribution(
    distribution: WeightDistribution, estimator: Estimator
) -> None:
    if estimator == "flipout" and not distribution.is_symmetric:
        pytest.skip("flipout refuses it")
    layer, weights = sampled(distribution, estimator)
    mean_of, std_of = MOMENTS[distribution]
    for name, drawn in weights.items():
        value = layer.get_parameter(name).detach()
        std = std_of(value)
        # Of DRAWS independent draws, a mean is off by more than 5 / sqrt(DRAWS) standard deviations one time
        # in two million, and so is a variance by 5 sqrt(2 / DRAWS) of itself, as its kurtosis is 3 or less.
        error = (drawn.mean(dim=0) - mean_of(value)).abs() / std
        assert float(error.max()) < 5 / math.sqrt(DRAWS)
        ratio = drawn.var(dim=0) / std.square()
        assert float((ratio - 1).abs().max()) < 5 * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize(
    ("estimator", "correlation"), [("flipout", 0.0), ("shared", 1.0), ("independent", 0.0)]
)
def test_only_shared_noise_is_correlated_between_examples(estimator: Estimator, correlation: float) -> None:
    layer, weights = sampled(AdditiveGaussian(0.3), estimator)
    noise = (weights["weight"] - layer.weight.detach()) / 0.3
    between = (noise[:, 0] * noise[:, 1]).mean(dim=0)
    assert float((between - correlation).abs().max()) < 5 * math.sqrt(3 / DRAWS)


def test_flipout_flips_outputs_and_inputs_independently() -> None:
    layer, weights = sampled(AdditiveGaussian(0.3), "flipout")
    noise = weights["weight"] - layer.weight.detach()
    flips = (noise[:, 0] * noise[:, 1]).sign()  # [D, J, I], r r' (s s')ᵀ of two examples
    limit = 5 / math.sqrt(DRAWS)
    assert float((flips[:, 0] * flips[:, 1]).mean(dim=0).abs().max()) < limit  # two outputs
    assert float((flips[:, :, 0] * flips[:, :, 1]).mean(dim=0).abs().max()) < limit  # two inputs
    assert bool((flips[:, 0, 0] * flips[:, 0, 1] * flips[:, 1, 0] * flips[:, 1, 1] == 1).all())  # rank one


def test_gaussian_weights_are_gaussian_and_dropped_ones_take_two_values() -> None:
    layer, weights = sampled(MultiplicativeGaussian(1.0), "flipout")
    noise = weights["weight"] / layer.weight.detach() - 1
    assert float((noise**4).mean() - 3) == pytest.approx(0, abs=0.3)
    layer, weights = sampled(DropConnect(), "flipout")
    kept = weights["weight"] / layer.weight.detach()
    assert set(kept.round(decimals=9).unique().tolist()) == {0.0, 1.0}


def learned(std: float = 0.3) -> PerturbedModule:
    torch.manual_seed(0)
    return perturbed(nn.Linear(3, 2).double(), LearnedGaussian(std)).double()


def test_kl_is_the_expected_difference_of_log_densities() -> None:
    noisy, prior = learned(), Normal(torch.tensor(0.1).double(), torch.tensor(0.7).double())
    total = 0.0
    torch.manual_seed(1)
    for name, mu in noisy.module.named_parameters():
        posterior = Normal(mu, nn.functional.softplus(noisy.rho[f"{name}_rho"]))
        w = posterior.sample((200_000,))
        total += float((posterior.log_prob(w) - prior.log_prob(w)).mean(dim=0).sum().detach())
    assert float(noisy.kl(prior).detach()) == pytest.approx(total, rel=5e-3)


def test_kl_from_itself_is_zero_and_pulls_to_the_prior() -> None:
    noisy = learned(0.7)
    with torch.no_grad():
        for mu in noisy.module.parameters():
            mu.zero_()
    assert float(noisy.kl(0.7).detach()) == pytest.approx(0, abs=1e-12)
    noisy = learned(0.3)
    gradients = torch.autograd.grad(noisy.kl(1.0), list(noisy.parameters()))
    by_name = dict(zip((name for name, _ in noisy.named_parameters()), gradients, strict=True))
    # d/dmu = mu, for a prior of standard deviation 1
    torch.testing.assert_close(by_name["module.weight"], noisy.module.weight)
    assert bool((by_name["rho.weight_rho"] < 0).all())  # a wider posterior is closer to it


def test_the_first_standard_deviation_is_the_initial_one() -> None:
    for std in (1e-4, 0.3, 40.0):
        noisy = perturbed(nn.Linear(3, 2), LearnedGaussian(std))
        torch.testing.assert_close(
            nn.functional.softplus(noisy.rho["weight_rho"]), torch.full((2, 3), std), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiplicativeGaussian(0.0), "std must be positive and finite, got 0.0"),
        (lambda: AdditiveGaussian(float("nan")), "std must be positive and finite, got nan"),
        (lambda: LearnedGaussian(-1), "initial_std must be positive and finite, got -1"),
        (lambda: DropConnect(1.0), "p must be between 0 and 1, got 1.0"),
        (lambda: perturbed(nn.Linear(2, 2), DropConnect(0.3)), "symmetric about its mean, and DropConnect"),
        (
            lambda: perturbed(nn.Linear(2, 2), DropConnect(), estimator="local"),
            "'local' is exact for Gaussian noise only",
        ),
        (
            lambda: perturbed(nn.Linear(2, 2), DropConnect(), estimator="fast"),
            "estimator must be one of flipout, shared, independent, local, got 'fast'",
        ),
        (
            lambda: perturbed(nn.Linear(2, 2), DropConnect(), estimator="shared", num_bases=2),
            "num_bases must be >= 1, and 1 unless estimator is 'flipout', got 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_kl_needs_a_learned_distribution() -> None:
    with pytest.raises(TypeError, match="kl is for LearnedGaussian"):
        perturbed(nn.Linear(2, 2), MultiplicativeGaussian()).kl(1.0)
