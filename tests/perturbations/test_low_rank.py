"""Low-rank noise only: the formula from the stored factors, memory, the error."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from es_flipout.perturbations import LowRank, PopulationNoise
from es_flipout.perturbations.low_rank import LowRankRows, LowRankTable


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_factors(noise: PopulationNoise) -> tuple[Tensor, Tensor]:
    """Returns Aᵀ / sqrt(r) [D, r, J] and Bᵀ [D, r, I, ...] of "weight" as they are stored."""
    factors = noise.tables[0].split(noise.tables[0].values)
    return factors["left weight"], factors["right weight"]


class TestWorkedByHand:
    # Rank 2: A = [[1, 2],   B = [[1, 0],   A Bᵀ = [[1, 3, 4],   over sqrt 2 (stored with A)
    #              [3, 4]]        [1, 1],           [3, 7, 8]]
    #                             [0, 2]]
    left = torch.tensor([[[1.0, 3.0], [2.0, 4.0]]]) / math.sqrt(2)
    right = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]])
    eps = torch.tensor([[1.0, 3.0, 4.0], [3.0, 7.0, 8.0]]) / math.sqrt(2)
    noise = PopulationNoise([LowRankTable({"weight": left}, {"weight": right})], 2, antithetic=True)

    def test_member_is_the_product_of_its_factors(self) -> None:
        torch.testing.assert_close(self.noise.member(0)["weight"], self.eps)
        torch.testing.assert_close(self.noise.member(1)["weight"], -self.eps)

    def test_linear_goes_through_the_factors(self) -> None:
        # x = (1, 0, 1): x epsᵀ = (5, 11) / sqrt 2, by a scale of sqrt 2 / 5 (1, 2.2).
        rows = self.noise.rows(torch.tensor([0, 1]), math.sqrt(2) / 5)["weight"]
        outputs = rows.add_linear(torch.ones(2, 2), torch.tensor([[1.0, 0.0, 1.0]] * 2))
        torch.testing.assert_close(outputs, torch.tensor([[2.0, 3.2], [0.0, -1.2]]))

    def test_weighted_sum_counts_the_opposite_member_negatively(self) -> None:
        total = self.noise.weighted_sum(torch.tensor([5.0, 2.0]))["weight"]
        torch.testing.assert_close(total, 3 * self.eps)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("size", [(4, 3), (4, 3, 2, 2)], ids=str)
def test_member_is_a_times_b_transposed_over_the_root_of_the_rank(size: tuple[int, ...], rank: int) -> None:
    weight = torch.empty(size, dtype=torch.float64)
    noise = LowRank(rank).sample({"weight": weight}, 6, generator_of(0))
    left, right = drawn_factors(noise)
    assert left.shape == (3, rank, 4)
    assert right.shape == (3, rank, *size[1:])
    for member in range(6):
        A, B = math.sqrt(rank) * left[member // 2].T, right[member // 2].flatten(1).T
        expected = (1 - 2 * (member % 2)) * (A @ B.T).view(size) / math.sqrt(rank)
        torch.testing.assert_close(noise.member(member)["weight"], expected, rtol=1e-14, atol=1e-15)


def test_the_factors_are_standard_normal() -> None:
    # 60,000 draws each: mean and variance have standard errors of 0.004 and 0.006, kurtosis one of 0.02.
    noise = LowRank(3).sample({"weight": torch.empty(50, 50)}, 800, generator_of(1))
    left, right = drawn_factors(noise)
    for values in (math.sqrt(3) * left, right):
        assert float(values.mean()) == pytest.approx(0, abs=0.025)
        assert float(values.var()) == pytest.approx(1, abs=0.035)
        assert float(values.double().pow(4).mean()) == pytest.approx(3, abs=0.12)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("antithetic", [True, False])
def test_entries_are_uncorrelated_with_mean_0_and_variance_1(rank: int, antithetic: bool) -> None:
    # E[eps^4] = 3 (1 + 2 / r). Over N independent members means have a standard error of 1 / sqrt(N), and
    # entries of the covariance one of at most sqrt((E[eps^4] - 1) / N): 6 of them are allowed.
    members, weight = 20_000, torch.empty(3, 4, dtype=torch.float64)
    noise = LowRank(rank).sample({"weight": weight}, members, generator_of(2), antithetic=antithetic)
    first_of_pairs = torch.arange(0, members, 2 if antithetic else 1)
    eps = noise.rows(first_of_pairs, 1.0)["weight"].dense().flatten(1)
    count, fourth_moment = len(eps), 3 * (1 + 2 / rank)
    assert eps.mean(dim=0).abs().max() < 6 / math.sqrt(count)
    covariance = eps.T @ eps / count
    bound = 6 * math.sqrt((fourth_moment - 1) / count)
    assert (covariance - torch.eye(12, dtype=torch.float64)).abs().max() < bound
    assert float(eps.pow(4).mean()) == pytest.approx(fourth_moment, rel=0.2)


def test_opposite_members_are_exact_negatives() -> None:
    parameters = {"weight": torch.empty(3, 4), "bias": torch.empty(3)}
    noise = LowRank(2).sample(parameters, 8, generator_of(3))
    for member in range(0, 8, 2):
        plus, minus = noise.member(member), noise.member(member + 1)
        assert all(torch.equal(plus[name], -minus[name]) for name in parameters)


def test_slices_and_transposes_are_those_of_the_product() -> None:
    left, right = (
        torch.randn(2, 3, 4, generator=generator_of(4)),
        torch.randn(2, 3, 5, generator=generator_of(5)),
    )
    rows = LowRankRows(left, right)
    torch.testing.assert_close(rows.transposed().dense(), rows.dense().mT)
    torch.testing.assert_close(rows.narrowed(0, 1, 2).dense(), rows.dense()[:, 1:3])
    torch.testing.assert_close(rows.narrowed(1, 2, 3).dense(), rows.dense()[:, :, 2:5])


def test_ten_thousand_members_of_a_humanoid_policy_fit_in_64_megabytes() -> None:
    sizes = [348, 256, 256, 17]
    parameters = {
        f"{layer}.weight": torch.empty(outputs, inputs)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
    }
    noise = LowRank().sample(parameters, 10_000, generator_of(0))
    # 5,000 directions of 348 + 256 + 256 + 256 + 256 + 17 = 1,389 numbers of 4 bytes: 28 MB.
    assert sum(table.values.untyped_storage().nbytes() for table in noise.tables) == 5_000 * 1_389 * 4


TARGET = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).reshape(5, 6)
"""Gradient G of the linear fitness F(W) = <G, W>; the center's fitness is 0, so u_m = sigma <G, eps_m>."""


@pytest.mark.parametrize("rank", [1, 4])
def test_the_gradient_of_a_linear_fitness_has_the_error_of_theory(rank: int) -> None:
    # One member's estimate is <G, eps> eps, with eps = A Bᵀ / sqrt(r). Summed over the entries of eps, its
    # expected square is E[<G, eps>² |eps|²]; for Gaussian A [J, r] and B [I, r] that is, for rank 1,
    # E[(aᵀ G b)² |a|² |b|²] = (J + 2) (I + 2) |G|², and drawn here for any rank by brute force.
    draws, members = 200, 32
    generator = generator_of(6)
    A = torch.randn(200_000, 5, rank, generator=generator, dtype=torch.float64)
    B = torch.randn(200_000, 6, rank, generator=generator, dtype=torch.float64)
    eps = A @ B.mT / math.sqrt(rank)
    square = ((TARGET * eps).sum((1, 2)).square() * eps.square().sum((1, 2))).mean() / TARGET.square().sum()
    if rank == 1:
        assert float(square) == pytest.approx(7 * 8, rel=0.05)
    error = 0.0
    for _ in range(draws):
        noise = LowRank(rank).sample({"weight": TARGET}, members, generator, antithetic=False)
        written_out = noise.rows(torch.arange(members), 1.0)["weight"].dense()
        estimate = noise.weighted_sum((TARGET * written_out).sum((1, 2)))["weight"] / members
        error += float((estimate - TARGET).square().sum())
    relative = error / draws / float(TARGET.square().sum())
    assert relative == pytest.approx((float(square) - 1) / members, rel=0.2)
