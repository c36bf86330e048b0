"""Action heads: actions of every kind of space, and the spaces that are refused."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.perturbations import Flipout, Independent, Perturbation
from es_flipout.policies import MLPPolicy, make_action_head
from es_flipout.population import Population

VECTOR = spaces.Box(-np.inf, np.inf, (4,))
TORQUES = spaces.Box(-1.0, 1.0, (3,))


def observations(rows: int = 20, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, 4, generator=torch.Generator().manual_seed(9))


class TestBoxActions:
    def head(self, low: list[float], high: list[float], bounds: str) -> nn.Module:
        return make_action_head(spaces.Box(np.float32(low), np.float32(high)), bounds)

    def test_rescaling_squashes_into_the_range(self) -> None:
        outputs = torch.tensor([[0.0, 0.0], [50.0, -50.0], [math.atanh(0.5), math.atanh(-0.25)]])
        actions = self.head([-1.0, 2.0], [3.0, 4.0], "rescale")(outputs)
        torch.testing.assert_close(actions, torch.tensor([[1.0, 3.0], [3.0, 2.0], [2.0, 2.75]]))

    def test_rescaled_actions_never_leave_the_range(self) -> None:
        # The middle and half-width of these ranges do not add up to their ends in float32.
        low, high = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor(
            [[-1.0], [1.0]]
        )
        head = self.head(low.tolist(), high.tolist(), "rescale")
        assert ((head.middle + head.reach > high) | (head.middle - head.reach < low)).any()
        for outputs in (torch.full((1, 500), 50.0), torch.full((1, 500), -50.0)):
            actions = head(outputs)
            assert (actions >= low).all()
            assert (actions <= high).all()

    def test_clipping_uses_the_finite_bounds(self) -> None:
        outputs = torch.tensor([[-7.0, -7.0, -7.0, -7.0], [0.25, 0.25, 0.25, 0.25], [7.0, 7.0, 7.0, 7.0]])
        head = self.head([-1.0, -np.inf, 0.5, -np.inf], [1.0, 2.0, np.inf, np.inf], "clip")
        expected = [[-1.0, -7.0, 0.5, -7.0], [0.25, 0.25, 0.5, 0.25], [1.0, 2.0, 7.0, 7.0]]
        assert head(outputs).tolist() == expected

    @pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (-1.0, np.inf), (-np.inf, np.inf)])
    def test_rescaling_to_an_infinite_range_is_refused(self, low: float, high: float) -> None:
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

    def test_multi_discrete_groups_choose_independently(self) -> None:
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
    def test_other_actions_are_refused_with_a_remedy(self, space: gym.Space) -> None:
        name = type(space).__name__
        with pytest.raises(
            ValueError, match=rf"^{name} actions are not supported.*wrappers\.TransformAction"
        ):
            MLPPolicy(VECTOR, space)
