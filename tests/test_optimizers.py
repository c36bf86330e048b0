"""Optimizers by name, and ClipUp against the paper's formulas and numbers worked out by hand."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from es_flipout.optimizers import ClipUp
from es_flipout.run.build import make_optimizer
from es_flipout.run.config import OptimizerConfig


def linear_policy(seed: int = 0) -> nn.Linear:
    policy = nn.Linear(3, 2).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=generator)
    return policy


def weights_of(policy: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def give_gradient(policy: nn.Module, gradient: Tensor) -> None:
    sizes = [parameter.numel() for parameter in policy.parameters()]
    for parameter, part in zip(policy.parameters(), gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).clone()


class TestMakeOptimizer:
    @pytest.mark.parametrize(
        "name",
        [
            *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam"),
            *("RMSprop", "Rprop", "SGD", "ClipUp"),
        ],
    )
    def test_every_optimizer_descends(self, name: str) -> None:
        policy = linear_policy()
        optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.02), policy)
        assert type(optimizer) is (ClipUp if name == "ClipUp" else getattr(torch.optim, name))
        assert {group["lr"] for group in optimizer.param_groups} == {0.02}
        target = torch.arange(1, 9, dtype=torch.float64)
        before = weights_of(policy)
        for _ in range(5):
            give_gradient(policy, weights_of(policy) - target)
            optimizer.step()
        assert (weights_of(policy) - target).norm() < (before - target).norm()

    def test_optimizes_all_trained_parameters(self) -> None:
        policy = linear_policy()
        (group,) = make_optimizer(OptimizerConfig(), policy).param_groups
        assert {id(parameter) for parameter in group["params"]} == {id(p) for p in policy.parameters()}
        policy.bias.requires_grad_(False)
        (group,) = make_optimizer(OptimizerConfig(), policy).param_groups
        assert [id(parameter) for parameter in group["params"]] == [id(policy.weight)]

    def test_passes_further_arguments(self) -> None:
        kwargs = {"weight_decay": 0.1, "momentum": 0.5, "nesterov": True}
        (group,) = make_optimizer(OptimizerConfig(name="SGD", kwargs=kwargs), linear_policy()).param_groups
        assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 0.5, True)
        kwargs = {"momentum": 0.5, "max_speed": 3.0}
        (group,) = make_optimizer(OptimizerConfig(name="ClipUp", kwargs=kwargs), linear_policy()).param_groups
        assert (group["momentum"], group["max_speed"]) == (0.5, 3.0)

    @pytest.mark.parametrize("name", ["Adamm", "adam", "LBFGS", "SparseAdam", "Optimizer", "lr_scheduler"])
    def test_an_unusable_name_gets_the_list_of_usable_ones(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=f"'{name}' is not available; choose one of .*Adam, AdamW.*ClipUp.*SGD"
        ) as caught:
            make_optimizer(OptimizerConfig(name=name), linear_policy())
        assert "LBFGS" not in str(caught.value).split("choose one of")[1]
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("config", "clue"),
        [
            (OptimizerConfig(kwargs={"momentum": 0.9}), "momentum"),
            (OptimizerConfig(kwargs={"betas": [0.9, 2.0]}), "beta"),
            (OptimizerConfig(name="Rprop", kwargs={"weight_decay": 0.1}), "weight_decay"),
            (OptimizerConfig(name="SGD", kwargs={"nesterov": True}), "momentum"),
            (OptimizerConfig(name="ClipUp", kwargs={"momentum": 1.0}), "momentum must be in [0, 1), got 1.0"),
            (OptimizerConfig(name="ClipUp", kwargs={"max_speed": 0}), "max_speed must be > 0"),
            (OptimizerConfig(name="ClipUp", kwargs={"betas": [0.9, 0.9]}), "betas"),
        ],
    )
    def test_bad_arguments_get_one_line_that_names_them(self, config: OptimizerConfig, clue: str) -> None:
        with pytest.raises(ValueError, match=f"^optimizer {config.name}: ") as caught:
            make_optimizer(config, linear_policy())
        assert clue in str(caught.value).lower()
        assert "\n" not in str(caught.value)


class Users(torch.optim.SGD):
    """A user's optimizer."""

    def __init__(self, params, lr: float, twice: bool = False) -> None:
        super().__init__(params, lr=2 * lr if twice else lr)


class Searching(torch.optim.Optimizer):
    """Needs to evaluate the loss."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure) -> float:
        return closure()


class TestUsers:
    @pytest.mark.parametrize("name", [f"{__name__}:Users", f"{__name__}.Users"])
    def test_a_path_names_it(self, name: str) -> None:
        config = OptimizerConfig(name=name, lr=0.1, kwargs={"twice": True})
        optimizer = make_optimizer(config, linear_policy())
        assert type(optimizer) is Users
        assert optimizer.param_groups[0]["lr"] == 0.2

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere:Adam", "optimizer.name 'nowhere:Adam': cannot import nowhere: ModuleNotFoundError"),
            (f"{__name__}:Nonesuch", f"the module {__name__} has no Nonesuch"),
            (f"{__name__}:nn", "must be a subclass of torch.optim.Optimizer, but is <module"),
            (f"{__name__}:Searching", "needs a closure or sparse gradients"),
            ("torch.optim.SparseAdam", "needs a closure or sparse gradients"),
        ],
    )
    def test_an_unusable_class_gets_a_message(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            make_optimizer(OptimizerConfig(name=name), linear_policy())
        assert "\n" not in str(caught.value)


class Pair(nn.Module):
    """Two parameters of one number each, so that norms are over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))


class TestClipUp:
    def test_numbers_worked_out_by_hand(self) -> None:
        # lr 1, momentum 1/2, max speed 1.25. The gradient (3, 4) has length 5: direction (0.6, 0.8).
        pair = Pair()
        optimizer = ClipUp(pair.parameters(), lr=1.0, momentum=0.5, max_speed=1.25)
        give_gradient(pair, torch.tensor([3.0, 4.0], dtype=torch.float64))
        optimizer.step()  # v = (0.6, 0.8), of length 1: not clipped
        torch.testing.assert_close(weights_of(pair), torch.tensor([0.4, 1.2], dtype=torch.float64))
        optimizer.step()  # v = (0.9, 1.2), of length 1.5: clipped to (0.75, 1)
        torch.testing.assert_close(weights_of(pair), torch.tensor([-0.35, 0.2], dtype=torch.float64))
        give_gradient(pair, torch.tensor([0.0, -2e-9], dtype=torch.float64))
        optimizer.step()  # v = (0.375, 0.5) + (0, -1): (0.375, -0.5)
        torch.testing.assert_close(weights_of(pair), torch.tensor([-0.725, 0.7], dtype=torch.float64))

    def test_the_papers_algorithm(self) -> None:
        policy, generator = linear_policy(), torch.Generator().manual_seed(1)
        optimizer = ClipUp(policy.parameters(), lr=0.3)
        theta, v, clipped = weights_of(policy), torch.zeros(8, dtype=torch.float64), 0
        for _ in range(30):
            g = torch.randn(8, generator=generator, dtype=torch.float64) + 1
            give_gradient(policy, -g)  # the paper ascends
            optimizer.step()
            v = 0.9 * v + 0.3 * g / g.norm()
            if v.norm() > 0.6:
                v, clipped = 0.6 * v / v.norm(), clipped + 1
            theta = theta + v
            torch.testing.assert_close(weights_of(policy), theta, rtol=1e-12, atol=1e-12)
        assert 0 < clipped < 30

    def test_the_length_of_a_gradient_does_not_matter(self) -> None:
        policies = [linear_policy().float() for _ in range(3)]
        for policy, scale in zip(policies, (1.0, 1e-30, 1e30), strict=True):
            optimizer = ClipUp(policy.parameters(), lr=0.1)
            for _ in range(3):
                give_gradient(policy, scale * torch.arange(1.0, 9.0))
                optimizer.step()
        for policy in policies[1:]:
            torch.testing.assert_close(weights_of(policy), weights_of(policies[0]))

    def test_a_gradient_of_zero_lets_the_velocity_fade(self) -> None:
        pair = Pair()
        optimizer = ClipUp(pair.parameters(), lr=1.0, momentum=0.5)
        give_gradient(pair, torch.zeros(2, dtype=torch.float64))
        optimizer.step()
        assert weights_of(pair).tolist() == [1.0, 2.0]
        give_gradient(pair, torch.tensor([0.0, 1.0], dtype=torch.float64))
        optimizer.step()
        give_gradient(pair, torch.zeros(2, dtype=torch.float64))
        optimizer.step()
        assert weights_of(pair).tolist() == [1.0, 2.0 - 1.0 - 0.5]

    @pytest.mark.parametrize(("max_speed", "speeds"), [(None, [2.0, 1.0]), (1.5, [1.5, 1.5])])
    def test_a_schedule_moves_only_the_default_speed_limit(
        self, max_speed: float | None, speeds: list[float]
    ) -> None:
        pair = Pair()
        optimizer = ClipUp(pair.parameters(), lr=1.0, max_speed=max_speed)
        for lr, speed in zip((1.0, 0.5), speeds, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for _ in range(30):
                before = weights_of(pair)
                give_gradient(pair, torch.tensor([3.0, 4.0], dtype=torch.float64))
                optimizer.step()
            assert float((weights_of(pair) - before).norm()) == pytest.approx(speed)

    def test_groups_have_their_own_norms(self) -> None:
        pair = Pair()
        optimizer = ClipUp([{"params": [pair.a]}, {"params": [pair.b], "lr": 0.5}], lr=0.25)
        give_gradient(pair, torch.tensor([300.0, -0.01], dtype=torch.float64))
        optimizer.step()
        assert weights_of(pair).tolist() == [0.75, 2.5]

    def test_a_parameter_without_a_gradient_stays(self) -> None:
        pair = Pair()
        optimizer = ClipUp(pair.parameters(), lr=1.0)
        pair.b.grad = torch.tensor([7.0], dtype=torch.float64)
        optimizer.step()
        assert weights_of(pair).tolist() == [1.0, 1.0]

    def test_a_loaded_state_continues_bit_identically(self) -> None:
        policy, generator = linear_policy(), torch.Generator().manual_seed(1)
        optimizer = ClipUp(policy.parameters(), lr=0.3)
        gradients = torch.randn(6, 8, generator=generator, dtype=torch.float64)
        for gradient in gradients[:3]:
            give_gradient(policy, gradient)
            optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed, forgetful = copy.deepcopy(policy), copy.deepcopy(policy)
        loaded = ClipUp(resumed.parameters(), lr=0.1)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for each, its in (
            (policy, optimizer),
            (resumed, loaded),
            (forgetful, ClipUp(forgetful.parameters(), lr=0.3)),
        ):
            for gradient in gradients[3:]:
                give_gradient(each, gradient)
                its.step()
        assert torch.equal(weights_of(policy), weights_of(resumed))
        assert not torch.equal(weights_of(policy), weights_of(forgetful))

    def test_a_closure_gives_the_loss(self) -> None:
        pair = Pair()
        optimizer = ClipUp(pair.parameters(), lr=1.0)

        def closure() -> float:
            loss = (3 * pair.a + 4 * pair.b).sum()
            loss.backward()
            return loss.item()

        assert optimizer.step(closure) == 11.0
        torch.testing.assert_close(weights_of(pair), torch.tensor([0.4, 1.2], dtype=torch.float64))

    @pytest.mark.parametrize("lr", [0.0, -1.0, math.nan, math.inf])
    def test_a_learning_rate_out_of_range_is_refused(self, lr: float) -> None:
        with pytest.raises(ValueError, match="lr must be > 0"):
            ClipUp([torch.zeros(1, requires_grad=True)], lr=lr)
