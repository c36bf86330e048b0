"""Action heads: actions of every kind of space, and the spaces that are refused."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import assume, given
from hypothesis import strategies as st
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
        with pytest.raises(ValueError, match=r"policy\.action_bounds to clip, or give the env"):
            self.head([-1.0, low], [1.0, high], "rescale")

    @pytest.mark.parametrize("bound", [1e300, 3e38, 2e10])
    def test_a_range_that_means_none_is_as_good_as_an_infinite_one(self, bound: float) -> None:
        space = spaces.Box(-bound, bound, (2,), np.float64)
        with pytest.raises(ValueError, match="the action range must "):
            make_action_head(space, "rescale")
        outputs = torch.tensor([[-3.0, 5e37]])
        actions = make_action_head(space, "clip")(outputs)
        assert actions.tolist() == torch.tensor([[-3.0, min(5e37, bound)]]).tolist()

    def test_there_must_be_something_to_act_on(self) -> None:
        with pytest.raises(ValueError, match="nothing to act on"):
            make_action_head(spaces.Box(-1.0, 1.0, (0,)))

    @given(
        ends=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2, unique=True),
        bounds=st.sampled_from(["rescale", "clip"]),
    )
    def test_actions_stay_in_a_float64_space_that_float32_cannot_express(
        self, ends: list[float], bounds: str
    ) -> None:
        space = spaces.Box(min(ends), max(ends), (1,), np.float64)
        assume(np.nextafter(np.float32(min(ends)), np.float32(np.inf)) < max(ends))
        head = make_action_head(space, bounds)
        for output in (-1e30, -1.0, 0.0, 1.0, 1e30):
            action = head(torch.tensor([[output]])).numpy().astype(space.dtype)[0]
            assert action in space

    def test_actions_are_float32_within_a_float64_space(self) -> None:
        space = spaces.Box(-1.0, 1.0, (3,), np.float64)
        for bounds in ("rescale", "clip"):
            policy = MLPPolicy(VECTOR, space, action_bounds=bounds)
            assert policy(observations()).dtype == torch.float32

    def test_matrices_of_actions_are_refused(self) -> None:
        for space in (spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([[2, 2], [3, 3]])):
            with pytest.raises(ValueError, match=r"(?s)actions must be vectors.*wrappers\.TransformAction"):
                make_action_head(space)


class TestIntegerActions:
    @given(
        dtype=st.sampled_from(
            [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.bool_]
        ),
        bounds=st.sampled_from(["rescale", "clip"]),
        data=st.data(),
    )
    def test_every_action_is_in_the_space(self, dtype: type, bounds: str, data: st.DataObject) -> None:
        info = np.iinfo(dtype) if dtype is not np.bool_ else None
        lowest, highest = (int(info.min), int(info.max)) if info else (0, 1)
        if bounds == "rescale":
            lowest, highest = max(lowest, -(10**9)), min(highest, 10**9)
        ends = sorted(data.draw(st.lists(st.integers(lowest, highest), min_size=2, max_size=2)))
        space = spaces.Box(np.array([ends[0]], dtype), np.array([ends[1]], dtype), (1,), dtype)
        head = make_action_head(space, bounds)
        for output in (-math.inf, -1e30, -0.7, 0.0, 0.5, 3e8, 1e30, math.inf, math.nan):
            action = head(torch.tensor([[output]])).to(torch.from_numpy(np.empty(0, dtype)).dtype).numpy()[0]
            assert action in space, (output, action)

    def test_every_integer_has_an_equal_share_of_the_squashed_range(self) -> None:
        head = make_action_head(spaces.Box(-1, 2, (1,), np.int64))
        squashed = torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64).unsqueeze(1)
        actions, counts = head(torch.atanh(squashed)).unique(return_counts=True)
        assert actions.tolist() == [-1, 0, 1, 2]
        assert counts.min() >= 0.97 * 4001 / 4

    def test_clipped_outputs_are_rounded_not_cut_off(self) -> None:
        head = make_action_head(spaces.Box(-2, 3, (1,), np.int32), "clip")
        outputs = [[-9.0], [-1.6], [-0.4], [0.6], [2.7], [9.0]]
        assert head(torch.tensor(outputs)).flatten().tolist() == [-2, -2, 0, 1, 3, 3]

    def test_booleans_are_chosen_by_the_sign(self) -> None:
        head = make_action_head(spaces.Box(np.zeros(2, np.bool_), np.ones(2, np.bool_), dtype=np.bool_))
        assert head(torch.tensor([[-0.1, 0.1]])).tolist() == [[0, 1]]

    def test_ranges_that_nothing_can_be_squashed_into_are_refused(self) -> None:
        space = spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64)
        with pytest.raises(ValueError, match=r"within ±1e\+10.*policy\.action_bounds to clip"):
            make_action_head(space, "rescale")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_converting_a_policy_does_not_change_its_range(self, dtype: torch.dtype) -> None:
        policy = MLPPolicy(VECTOR, spaces.Box(-(10**8), 10**8, (1,), np.int64), action_bounds="clip").to(
            dtype
        )
        head = policy.head
        assert head(torch.full((1, 1), 1e9)).tolist() == [[10**8]]


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
