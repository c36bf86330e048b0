"""Flipout only: signs, roles, memory, and what a shared base costs the gradient."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from es_flipout.perturbations import Flipout, Independent, Perturbation, PopulationNoise
from es_flipout.perturbations.flipout import FlipoutRows, FlipoutTable, draw_signs
from es_flipout.perturbations.row_groups import RowGroups


def one_matrix(
    bases: Tensor, output_signs: Tensor, input_signs: Tensor, *, antithetic: bool = False
) -> PopulationNoise:
    """Returns the noise of one weight, given bases [K, J, I] and signs [D, J] and [D, I]."""
    table = FlipoutTable({"weight": bases}, {"weight": output_signs}, {"weight": input_signs})
    population_size = len(output_signs) * (2 if antithetic else 1)
    return PopulationNoise([table], population_size, antithetic, len(bases))


def table_of(noise: PopulationNoise) -> FlipoutTable:
    """Returns the table of the weights, which comes first."""
    table = noise.tables[0]
    assert isinstance(table, FlipoutTable)
    return table


def drawn_signs(noise: PopulationNoise) -> tuple[Tensor, Tensor]:
    """Returns the output signs [D, J] and the input signs [D, I] of "weight" as they are stored."""
    table = table_of(noise)
    signs = table.split(table.values)
    return signs["0 weight"], signs["1 weight"]


def signs(*rows: Sequence[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def tensors_of(value: object) -> Iterator[Tensor]:
    """Walks every tensor that an object reaches through mappings, sequences and attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif hasattr(value, "__dict__"):
        yield from tensors_of(vars(value))


class TestWorkedByHand:
    # base = [[1, 2],     r = (+1, -1)     r sᵀ = [[-1, +1],     eps = [[-1,  2],
    #         [3, 4]]     s = (-1, +1)              [+1, -1]]            [ 3, -4]]
    base = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    noise = one_matrix(base, signs([1, -1]), signs([-1, 1]), antithetic=True)
    eps = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])

    def test_member_is_base_times_outer_product(self) -> None:
        assert torch.equal(self.noise.member(0)["weight"], self.eps)
        assert torch.equal(self.noise.member(1)["weight"], -self.eps)

    def test_linear_flips_inputs_and_outputs(self) -> None:
        # x = (10, 1): x epsᵀ = (-10 + 2, 30 - 4) = (-8, 26), by half the scale (-4, 13)
        rows = self.noise.rows(torch.tensor([0, 1]), 0.5)["weight"]
        inputs = torch.tensor([[10.0, 1.0], [10.0, 1.0]])
        given = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
        expected = torch.tensor([[-3.0, 14.0], [6.0, -11.0]])
        assert torch.equal(rows.add_linear(given, inputs), expected)

    def test_weighted_sum_counts_the_mirror_image_negatively(self) -> None:
        # 5 eps + 2 (-eps) = 3 eps
        total = self.noise.weighted_sum(torch.tensor([5.0, 2.0]))["weight"]
        assert torch.equal(total, 3 * self.eps)

    def test_directions_use_their_bases_in_order(self) -> None:
        # D = 4 directions on K = 2 bases of ones and tens: 0 and 1 use the first, 2 and 3 the second.
        bases = torch.tensor([[[1.0]], [[10.0]]])
        noise = one_matrix(bases, signs([1], [-1], [1], [-1]), signs([1], [1], [1], [1]))
        assert [noise.member(index)["weight"].item() for index in range(4)] == [1, -1, 10, -10]
        rows = noise.rows(torch.tensor([3, 0, 2, 1]), 1.0)["weight"]
        outputs = rows.add_linear(torch.zeros(4, 1), torch.ones(4, 1))
        assert outputs.flatten().tolist() == [-10, 1, 10, -1]
        assert noise.weighted_sum(torch.tensor([1.0, 2.0, 3.0, 4.0]))["weight"].item() == 1 - 2 + 30 - 40


class TestRoles:
    def test_r_belongs_to_outputs_and_s_to_inputs(self) -> None:
        # J = 1 output, I = 3 inputs: a swap of r and s could not even be formed.
        noise = Flipout().sample({"weight": torch.empty(1, 3)}, 4, torch.Generator().manual_seed(0))
        outputs, inputs = drawn_signs(noise)
        assert outputs.shape == (2, 1)
        assert inputs.shape == (2, 3)

    def test_r_flips_rows_and_s_flips_columns_of_the_weight(self) -> None:
        # A square weight hides no shape error, so the signs alone must tell which is which.
        rows = FlipoutRows(torch.ones(1, 2, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), None)
        assert torch.equal(rows.dense()[0], torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        inputs = torch.tensor([[1.0, 2.0]])
        assert torch.equal(rows.add_linear(torch.zeros(1, 2), inputs), torch.tensor([[3.0, -3.0]]))
        columns = FlipoutRows(torch.ones(1, 2, 2), torch.ones(1, 2), torch.tensor([[1.0, -1.0]]), None)
        assert torch.equal(columns.dense()[0], torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
        assert torch.equal(columns.add_linear(torch.zeros(1, 2), inputs), torch.tensor([[-1.0, -1.0]]))

    def test_antithetic_signs_are_stored_once_a_pair(self) -> None:
        noise = Flipout().sample({"weight": torch.empty(3, 5)}, 8, torch.Generator().manual_seed(0))
        outputs, inputs = drawn_signs(noise)
        assert outputs.shape == (4, 3)
        assert inputs.shape == (4, 5)


class TestStorage:
    def test_signs_are_fair_and_independent_at_every_place_of_a_byte(self) -> None:
        # Bytes are a row of eight signs each: means and correlations of 40,000 rows are within 5 sigma of 0.
        rows = draw_signs((40_000, 8), torch.float64, torch.Generator().manual_seed(0))
        assert torch.equal(rows.abs(), torch.ones_like(rows))
        assert rows.mean(dim=0).abs().max() < 5 * 40_000**-0.5
        correlations = rows.T @ rows / len(rows) - torch.eye(8, dtype=torch.float64)
        assert correlations.abs().max() < 5 * 40_000**-0.5
        assert (rows[:-1] * rows[1:]).mean(dim=0).abs().max() < 5 * 40_000**-0.5

    @pytest.mark.parametrize("shape", [(), (3,), (2, 4), (5, 1, 3), (0, 3)])
    def test_any_shape_of_signs_can_be_drawn(self, shape: tuple[int, ...]) -> None:
        drawn = draw_signs(shape, torch.float32, torch.Generator().manual_seed(0))
        assert drawn.shape == shape
        assert drawn.dtype == torch.float32

    def test_signs_are_int8_plus_and_minus_one(self) -> None:
        noise = Flipout().sample({"weight": torch.empty(6, 5)}, 40, torch.Generator().manual_seed(0))
        for stored in drawn_signs(noise):
            assert stored.dtype == torch.int8
            assert stored.unique().tolist() == [-1, 1]

    def test_rademacher_base_is_plus_and_minus_one_in_the_weight_dtype(self) -> None:
        weight = torch.empty(6, 5, dtype=torch.float64)
        noise = Flipout(2).sample({"weight": weight}, 4, torch.Generator().manual_seed(0))
        assert table_of(noise).bases["weight"].dtype == torch.float64
        assert table_of(noise).bases["weight"].unique().tolist() == [-1.0, 1.0]

    def test_bases_of_a_generation_differ(self) -> None:
        for distribution in ("gaussian", "rademacher"):
            generator = torch.Generator().manual_seed(0)
            noise = Flipout(3, distribution).sample({"weight": torch.empty(6, 5)}, 6, generator)
            bases = table_of(noise).bases["weight"]
            assert bases.shape == (3, 6, 5)
            assert not any(torch.equal(a, b) for a, b in itertools.combinations(bases, 2))

    @pytest.mark.parametrize("antithetic", [True, False])
    def test_ten_thousand_members_of_a_humanoid_policy_fit_in_64_megabytes(self, antithetic: bool) -> None:
        sizes = [348, 256, 256, 17]
        parameters = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            parameters[f"{layer}.weight"] = torch.empty(outputs, inputs)
            parameters[f"{layer}.bias"] = torch.empty(outputs)
        generator = torch.Generator().manual_seed(0)
        noise = Flipout().sample(parameters, 10_000, generator, antithetic=antithetic)
        # By storage, so that a view cannot hide the memory that it keeps alive.
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tensors_of(noise)
        }
        # A direction holds (348 + 256) + (256 + 256) + (256 + 17) = 1,389 bytes of signs and 529 biases of
        # 4 bytes: 35 MB for 10,000 of them, half of it antithetic.
        assert 0 < sum(storages.values()) < 64e6
        dense = 10_000 * sum(value.numel() for value in parameters.values()) * 4
        assert dense > 6.3e9


def test_rows_are_grouped_by_base_and_restored_to_their_order() -> None:
    # Of 4 bases base 1 and, after the second assignment, base 0 have no row.
    groups = RowGroups(torch.tensor([2, 0, 2, 0, 3]), 4)
    rows, bases = torch.arange(5.0).unsqueeze(1), torch.tensor([100.0, 200.0, 300.0, 400.0])
    assert groups.run(torch.add, bases, rows).flatten().tolist() == [300, 101, 302, 103, 404]
    groups.assign(torch.tensor([3, 1]), torch.tensor([1, 2]))
    assert groups.run(torch.add, bases, rows).flatten().tolist() == [300, 301, 302, 203, 404]


TARGET = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).reshape(5, 6)
"""Gradient G of the linear fitness F(W) = <G, W>; the center's fitness is 0, so u_m = sigma <G, eps_m>."""


def estimate(noise: PopulationNoise, target: Tensor) -> Tensor:
    """Returns (1 / P) Σ_m <G, eps_m> eps_m; sigma cancels."""
    members = range(noise.population_size)
    fitness = torch.stack([(target * noise.member(index)["weight"]).sum() for index in members])
    return noise.weighted_sum(fitness)["weight"] / noise.population_size


class TestGradientOfALinearFitness:
    def all_signs(self, base: Tensor) -> PopulationNoise:
        """Every pair of sign vectors once: the mean over them is the expectation over signs."""
        outputs, inputs = base.shape
        table = signs(*itertools.product((-1, 1), repeat=outputs + inputs))
        return one_matrix(base.unsqueeze(0), table[:, :outputs], table[:, outputs:])

    def test_expectation_over_signs_is_exact_with_a_rademacher_base(self) -> None:
        target = TARGET[:2, :3]
        base = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(estimate(self.all_signs(base), target), target, rtol=1e-12, atol=1e-12)

    def test_expectation_over_signs_is_scaled_by_the_square_of_a_gaussian_base(self) -> None:
        # E[eps_ij eps_kl] = base_ij base_kl E[r_i r_k] E[s_j s_l] = base_ij² if (i, j) = (k, l), else 0.
        target = TARGET[:2, :3]
        base = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.1, -0.3]], dtype=torch.float64)
        expected = base.square() * target
        torch.testing.assert_close(estimate(self.all_signs(base), target), expected, rtol=1e-12, atol=1e-12)

    # With d weights, N members and K bases; two members share a base with chance (N / K - 1) / (N - 1), and
    # a Gaussian base costs 2 for each such pair: E[base^4] - 1, against 0 for a Rademacher base.
    @pytest.mark.parametrize(
        ("perturbation", "variance"),
        [
            pytest.param(Independent(), (30 + 1) / 32, id="independent"),
            pytest.param(Flipout(), (30 - 1) / 32, id="rademacher"),
            pytest.param(Flipout(8), (30 - 1) / 32, id="rademacher-K8"),
            pytest.param(Flipout(1, "gaussian"), (30 + 1) / 32 + 2 * (32 - 1) / 32, id="gaussian"),
            pytest.param(Flipout(8, "gaussian"), (30 + 1) / 32 + 2 * (4 - 1) / 32, id="gaussian-K8"),
        ],
    )
    def test_relative_error_is_what_theory_says(self, perturbation: Perturbation, variance: float) -> None:
        draws = 250  # for which the relative standard error is 2 to 3 percent, 6 with one Gaussian base
        generator, parameters = torch.Generator().manual_seed(3), {"weight": TARGET}
        error = sum(
            (estimate(perturbation.sample(parameters, 32, generator, antithetic=False), TARGET) - TARGET)
            .square()
            .sum()
            for _ in range(draws)
        )
        relative = float(error) / draws / float(TARGET.square().sum())
        assert relative == pytest.approx(variance, rel=0.15)

    def test_cosine_to_the_gradient_grows_with_the_population(self) -> None:
        # A Rademacher base has cosine² = 1 / (1 + (d - 1) / N), about 0.22, 0.52 and 0.82 for N = 8, 32 and
        # 128 (d = 30), with no ceiling although it is shared; one Gaussian base never passes 1 / 3.
        parameters = {"weight": TARGET}
        for members in (8, 32, 128):
            generator = torch.Generator().manual_seed(4)
            estimates = torch.stack(
                [
                    estimate(Flipout().sample(parameters, members, generator, antithetic=False), TARGET)
                    for _ in range(40)
                ]
            )
            cosine = torch.cosine_similarity(estimates.flatten(1), TARGET.flatten().unsqueeze(0)).mean()
            assert float(cosine) == pytest.approx((1 + 29 / members) ** -0.5, abs=0.06)
