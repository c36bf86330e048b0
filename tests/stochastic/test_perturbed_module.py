"""What a perturbed module owes its user: modes, draws, names, batches, errors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from es_flipout.perturbations import UnsupportedOperationError
from es_flipout.stochastic import (
    AdditiveGaussian,
    DropConnect,
    LearnedGaussian,
    MultiplicativeGaussian,
    PerturbedModule,
    perturbed,
)
from es_flipout.stochastic.estimators import Estimator

N = 5


def inputs_of(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def by_example(noisy: PerturbedModule, x: Tensor, seed: int) -> Tensor:
    weights = noisy.weights(len(x), seed)
    rows = [
        functional_call(noisy.module, {name: each[n] for name, each in weights.items()}, (x[n : n + 1],))
        for n in range(len(x))
    ]
    return torch.cat(rows)


class TestModes:
    def test_evaluation_uses_the_mean_weights(self) -> None:
        model, x = network(), inputs_of(N, 3)
        noisy = perturbed(model, MultiplicativeGaussian()).eval()
        assert torch.equal(noisy(x), model(x))
        halved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in halved.parameters():
                parameter.mul_(0.5)
        assert torch.equal(perturbed(model, DropConnect()).eval()(x), halved(x))

    def test_each_call_in_training_is_a_new_draw(self) -> None:
        noisy, x = perturbed(network(), MultiplicativeGaussian()), inputs_of(N, 3)
        assert not torch.equal(noisy(x), noisy(x))
        torch.manual_seed(5)
        first = noisy(x)
        torch.manual_seed(5)
        assert torch.equal(noisy(x), first)

    def test_examples_with_equal_inputs_differ(self) -> None:
        noisy, x = perturbed(network(), MultiplicativeGaussian()), inputs_of(1, 3).expand(N, 3)
        assert len(noisy(x).unique(dim=0)) == N
        noisy = perturbed(network(), MultiplicativeGaussian(), estimator="shared")
        assert len(noisy(x).unique(dim=0)) == 1

    @pytest.mark.parametrize("estimator", ["flipout", "shared", "independent", "local"])
    def test_a_frozen_draw_is_the_same_in_both_modes(self, estimator: Estimator) -> None:
        noisy, x = perturbed(network(), MultiplicativeGaussian(), estimator=estimator), inputs_of(N, 3)
        with noisy.frozen(3):
            first = noisy(x)
            assert torch.equal(noisy(x), first)
            assert torch.equal(noisy.eval()(x), first)
            with noisy.frozen(4):
                assert not torch.equal(noisy(x), first)
            assert torch.equal(noisy(x), first)
        assert torch.equal(noisy(x), noisy.module(x))
        with noisy.frozen():
            assert torch.equal(noisy(x), noisy(x))
            assert not torch.equal(noisy(x), first)

    def test_a_frozen_draw_does_not_touch_torchs_generator(self) -> None:
        noisy, x = perturbed(network(), MultiplicativeGaussian()), inputs_of(N, 3)
        before = torch.get_rng_state()
        with noisy.frozen(3):
            noisy(x)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_frozen_draw_of_a_parameter_is_independent_of_which_others_are_drawn(self) -> None:
        model = network()
        some = perturbed(model, MultiplicativeGaussian(), include="2.weight").weights(N, 3)
        every = perturbed(model, MultiplicativeGaussian()).weights(N, 3)
        assert torch.equal(some["2.weight"], every["2.weight"])

    def test_what_examples_share_does_not_depend_on_their_number(self) -> None:
        noisy = perturbed(network(), AdditiveGaussian(1.0))
        few, many = (noisy.weights(n, 3)["0.weight"] - noisy.module[0].weight for n in (2, 7))
        torch.testing.assert_close(few[0].abs(), many[0].abs())

    @pytest.mark.parametrize(("num_bases", "groups"), [(1, 1), (2, 2), (3, 3), (9, 5)])
    def test_consecutive_examples_share_a_base(self, num_bases: int, groups: int) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(3, 4).double()
        noisy = perturbed(layer, AdditiveGaussian(1.0), include="weight", num_bases=num_bases)
        noise = (noisy.weights(N, 3)["weight"] - layer.weight).detach().abs().round(decimals=9)
        found, base_of_example = noise.unique(dim=0, return_inverse=True)
        assert len(found) == groups
        changes = base_of_example.diff() != 0
        assert int(changes.sum()) == groups - 1  # consecutive
        x = inputs_of(N, 3)
        with noisy.frozen(3):
            torch.testing.assert_close(noisy(x), by_example(noisy, x, 3), rtol=1e-12, atol=1e-12)

    def test_an_optimizer_step_under_a_frozen_draw_moves_the_mean_only(self) -> None:
        noisy, x = perturbed(network(), AdditiveGaussian(1.0)), inputs_of(N, 3)
        before = noisy.weights(N, 3)
        with noisy.frozen(3):
            noisy(x).sum().backward()
            torch.optim.SGD(noisy.parameters(), 0.1).step()
        noise = [noisy.weights(N, 3)[name] - noisy.module.get_parameter(name) for name in before]
        for name, again in zip(before, noise, strict=True):
            step = noisy.module.get_parameter(name).grad * 0.1
            torch.testing.assert_close(again, before[name] - noisy.module.get_parameter(name) - step)


class TestParameters:
    def test_state_dict_has_the_modules_keys_and_rho(self) -> None:
        model = network()
        assert perturbed(model, MultiplicativeGaussian()).state_dict().keys() == model.state_dict().keys()
        noisy = perturbed(model, LearnedGaussian(), include="*.weight").double()
        more = {"0.weight_rho", "2.weight_rho"}
        assert noisy.state_dict().keys() == model.state_dict().keys() | more

    def test_state_dicts_load_into_each_other(self) -> None:
        model, other = network(), perturbed(network(), MultiplicativeGaussian())
        with torch.no_grad():
            model[0].weight.add_(1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.module[0].weight, model[0].weight)
        model.load_state_dict(other.state_dict())
        learned, again = (perturbed(network(), LearnedGaussian()).double() for _ in range(2))
        with torch.no_grad():
            learned.rho["0/weight_rho"].add_(1)
        again.load_state_dict(learned.state_dict())
        assert torch.equal(again.rho["0/weight_rho"], learned.rho["0/weight_rho"])
        with pytest.raises(RuntimeError, match="Missing key"):
            learned.load_state_dict(model.state_dict())

    def test_parts_called_module_and_rho_keep_their_keys(self) -> None:
        inner = nn.ModuleDict({"rho": nn.Linear(1, 1), "b": nn.Linear(2, 2)})
        whole = nn.ModuleDict({"module": inner, "b": nn.Linear(3, 3), "rho": nn.Linear(4, 4)})
        noisy = perturbed(copy.deepcopy(whole), LearnedGaussian())
        state, expected = noisy.state_dict(), whole.state_dict()
        assert {key for key in state if not key.endswith("_rho")} == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
        again = perturbed(copy.deepcopy(whole), LearnedGaussian())
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        again.load_state_dict(state)
        assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())

    def test_as_a_part_of_a_module_it_keeps_the_keys_too(self) -> None:
        whole = nn.ModuleDict({"head": nn.Linear(2, 2), "body": network()})
        noisy = nn.ModuleDict({"head": nn.Linear(2, 2), "body": perturbed(network(), LearnedGaussian())})
        keys = {key for key in noisy.state_dict() if not key.endswith("_rho")}
        assert keys == whole.state_dict().keys()
        noisy.load_state_dict(noisy.state_dict())

    def test_copies_and_pickles_go_on_alike(self) -> None:
        noisy, x = perturbed(network(), LearnedGaussian()).double(), inputs_of(N, 3)
        with noisy.frozen(3):
            expected = noisy(x)
        for twin in (copy.deepcopy(noisy), pickle.loads(pickle.dumps(noisy))):
            with twin.frozen(3):
                assert torch.equal(twin(x), expected)
            assert twin.state_dict().keys() == noisy.state_dict().keys()
            assert twin.module is not noisy.module

    def test_a_copy_of_a_frozen_module_is_not_frozen(self) -> None:
        noisy, x = perturbed(network(), MultiplicativeGaussian()), inputs_of(N, 3)
        with noisy.frozen(3):
            twin = copy.deepcopy(noisy)
            assert not torch.equal(twin(x), twin(x))

    def test_any_name_of_a_parameter_will_do(self) -> None:
        class Memory(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.keys = nn.Parameter(torch.ones(2, 3))

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.keys.T

        noisy = perturbed(Memory(), LearnedGaussian(0.1))
        assert list(noisy.state_dict()) == ["keys", "keys_rho"]
        noisy.load_state_dict(noisy.state_dict())
        noisy(torch.ones(N, 3)).sum().backward()
        assert all(parameter.grad is not None for parameter in noisy.parameters())
        taken = nn.Module()
        taken.register_parameter("weight", nn.Parameter(torch.ones(2)))
        taken.register_buffer("weight_rho", torch.ones(2))
        with pytest.raises(ValueError, match="has a 'weight_rho' of its own: rename it"):
            perturbed(taken, LearnedGaussian(0.1))

    def test_include_exclude_and_frozen_parameters(self) -> None:
        model = network()
        model[0].bias.requires_grad_(False)
        every = perturbed(model, MultiplicativeGaussian())
        assert every.names == ["0.weight", "2.weight", "2.bias"]
        assert perturbed(model, MultiplicativeGaussian(), include="2.*").names == ["2.weight", "2.bias"]
        some = perturbed(model, MultiplicativeGaussian(), include=["0.*", "2.*"], exclude="*.bias")
        assert some.names == ["0.weight", "2.weight"]
        with pytest.raises(
            ValueError, match=r"no parameter to perturb: include='\*.gain'.* 0.weight, 2.weight"
        ):
            perturbed(model, MultiplicativeGaussian(), include="*.gain")

    def test_parameters_that_are_left_alone_are_the_same_for_all_and_learn(self) -> None:
        noisy = perturbed(network(), MultiplicativeGaussian(), include="2.weight")
        noisy(inputs_of(N, 3)).sum().backward()
        assert all(parameter.grad is not None for parameter in noisy.parameters())
        assert noisy.weights(N, 0).keys() == {"2.weight"}

    def test_tied_parameters_have_one_noise(self) -> None:
        torch.manual_seed(0)

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(4, 3)
                self.head = nn.Linear(3, 4, bias=False)
                self.head.weight = self.embedding.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.tanh(self.embedding(x)))

        x = torch.tensor([[0, 1], [2, 3], [1, 1]])
        for include in ("*", "head.*", "embedding.*"):
            noisy = perturbed(Tied().double(), MultiplicativeGaussian(), include=include)
            assert noisy.names == ["embedding.weight"]
            with noisy.frozen(1):
                torch.testing.assert_close(noisy(x), by_example(noisy, x, 1), rtol=1e-12, atol=1e-12)
        assert perturbed_names(Tied(), exclude="head.*") == []

    def test_an_embeddings_padding_entry_gets_neither_noise_nor_gradient(self) -> None:
        table = nn.Embedding(4, 3, padding_idx=1)
        noisy = perturbed(table, AdditiveGaussian(1.0))
        y = noisy(torch.tensor([0, 1, 1, 2]))
        assert not y[1:3].any()
        y.sum().backward()
        assert table.weight.grad is not None
        assert not table.weight.grad[1].any()
        assert table.weight.grad[0].any()
        others = {"module.weight": torch.ones(4, 3)}
        assert bool((functional_call(noisy, others, torch.tensor([1])) == 1).all())
        noisy.requires_grad_(False)
        assert not noisy(torch.tensor([1, 1])).any()

    @pytest.mark.parametrize("estimator", ["flipout", "independent"])
    def test_a_padding_entry_of_a_lookup_gets_no_gradient_through_its_noise(
        self, estimator: Estimator
    ) -> None:
        class Lookup(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(inputs_of(4, 3))

            def forward(self, indices: Tensor) -> Tensor:
                return F.embedding(indices, self.table, padding_idx=-3)

        noisy = perturbed(Lookup(), LearnedGaussian(), estimator=estimator)
        noisy(torch.tensor([0, 1, 1, 2])).sum().backward()
        for parameter in noisy.parameters():
            assert parameter.grad is not None
            assert [bool(row.any()) for row in parameter.grad] == [True, False, True, False]

    def test_parts_that_change_after_the_call_are_seen(self) -> None:
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), torch.ones(N, 3)
        noisy = perturbed(model, MultiplicativeGaussian(), include="*.weight")
        with noisy.frozen(3):
            assert (noisy(x) == 0).any()
            model[1].eval()
            assert not (noisy(x) == 0).any()


def perturbed_names(model: nn.Module, **options: Any) -> list[str]:
    try:
        return perturbed(model, MultiplicativeGaussian(), **options).names
    except ValueError:
        return []


class TestOneDrawPerCall:
    def test_an_lstm_has_the_same_weights_at_every_time_step(self) -> None:
        torch.manual_seed(0)
        layer, x = nn.LSTM(3, 4, batch_first=True).double(), inputs_of(N, 6, 3)
        noisy = perturbed(layer, MultiplicativeGaussian(), include="*weight_hh*", out_dims=(0, (1, 1)))
        assert noisy.names == ["weight_hh_l0"]
        with noisy.frozen(1):
            outputs, (h, c) = perturbed_states(noisy, x)
        w_hh = noisy.weights(N, 1)["weight_hh_l0"]
        for n in range(N):  # the cell's equations, with one matrix for all steps
            hidden = cell = torch.zeros(4, dtype=torch.float64)
            for t in range(6):
                gates = layer.weight_ih_l0 @ x[n, t] + layer.bias_ih_l0 + w_hh[n] @ hidden + layer.bias_hh_l0
                i, f, g, o = gates.chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * cell.tanh()
                torch.testing.assert_close(outputs[n, t], hidden, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(h[0, n], hidden, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(c[0, n], cell, rtol=1e-12, atol=1e-12)

    def test_truncated_back_propagation_keeps_the_draw(self) -> None:
        torch.manual_seed(0)
        layer, x = nn.LSTM(3, 4, batch_first=True).double(), inputs_of(N, 6, 3)
        dims = (0, (1, 1))
        noisy = perturbed(layer, MultiplicativeGaussian(), in_dims=dims, out_dims=dims)
        zeros = torch.zeros(1, N, 4, dtype=torch.float64)
        with noisy.frozen(1):
            whole, _ = noisy(x, (zeros, zeros))
            first, state = noisy(x[:, :2], (zeros, zeros))
            first.sum().backward()
            second, _ = noisy(x[:, 2:], tuple(each.detach() for each in state))
            second.sum().backward()
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["flipout", "shared"])
    def test_a_recurrent_layer_keeps_the_list_of_its_weights(self, estimator: Estimator) -> None:
        layer, x = nn.LSTM(3, 4, batch_first=True).double(), inputs_of(N, 6, 3)
        noisy = perturbed(
            layer, DropConnect(), include="*weight_hh*", estimator=estimator, out_dims=(0, (1, 1))
        )
        for mode in (True, False):
            noisy.train(mode)(x)
            assert not layer._weights_have_changed()
            kept = zip(layer._flat_weights, layer.parameters(), strict=True)
            assert all(flat is parameter for flat, parameter in kept)

    def test_a_convolution_has_one_kernel_per_example(self) -> None:
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 3, 2, bias=False).double()
        noisy = perturbed(layer, MultiplicativeGaussian())
        # An impulse at each position of each input channel reads the kernel there.
        impulses = torch.zeros(N, 2, 5, 5, dtype=torch.float64)
        with noisy.frozen(1):
            responses = []
            for channel in range(2):
                for row in range(1, 4):
                    for column in range(1, 4):
                        x = impulses.clone()
                        x[:, channel, row, column] = 1
                        y = noisy(x)[:, :, row - 1 : row + 1, column - 1 : column + 1].flip(2, 3)
                        responses.append(y)
            both = inputs_of(N, 2, 5, 5)
            found = noisy(both)
        for index, response in enumerate(responses):
            torch.testing.assert_close(response, responses[index // 9 * 9], rtol=1e-12, atol=1e-12)
        kernels = torch.stack([responses[0], responses[9]], dim=2)
        torch.testing.assert_close(kernels, noisy.weights(N, 1)["weight"], rtol=1e-12, atol=1e-12)
        for n in range(N):
            torch.testing.assert_close(found[n], F.conv2d(both[n], kernels[n]), rtol=1e-12, atol=1e-12)

    def test_a_layer_that_is_used_twice_keeps_its_draw(self) -> None:
        layer = nn.Linear(3, 3).double()
        noisy = perturbed(Twice(layer), MultiplicativeGaussian())
        x = inputs_of(N, 3)
        with noisy.frozen(1):
            torch.testing.assert_close(noisy(x), by_example(noisy, x, 1), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
    def test_a_part_that_the_module_contains_twice_keeps_its_parameters(self, estimator: Estimator) -> None:
        layer, x = nn.Linear(3, 3).double(), inputs_of(N, 3)
        weight, bias = layer.weight, layer.bias
        noisy = perturbed(nn.Sequential(layer, nn.Tanh(), layer), DropConnect(), estimator=estimator)
        again = perturbed(Twice(layer), DropConnect(), estimator=estimator)
        assert noisy.names == ["0.weight", "0.bias"]
        for mode in (True, False):
            noisy.train(mode)(x)
            assert layer.weight is weight
            assert layer.bias is bias
        torch.testing.assert_close(noisy.eval()(x), again.eval()(x))


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def perturbed_states(noisy: PerturbedModule, x: Tensor) -> Any:
    """Runs an LSTM whose states have their batch in dimension 1."""
    again = perturbed(noisy.module, noisy.distribution, include=noisy.names, in_dims=0, out_dims=(0, (1, 1)))
    with again.frozen(1):
        return again(x)


class TestLocal:
    def test_its_outputs_have_the_mean_and_variance_of_independent_weights(self) -> None:
        torch.manual_seed(0)
        layer, draws = nn.Linear(3, 2).double(), 4000
        x = inputs_of(2, 3)
        noisy = perturbed(layer, MultiplicativeGaussian(0.5), estimator="local")
        outputs = noisy(x.repeat(draws, 1)).view(draws, 2, 2).detach()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        std = (0.25 * (x.square() @ weight.square().T + bias.square())).sqrt()
        assert float(((outputs.mean(dim=0) - layer(x).detach()) / std).abs().max()) < 5 / math.sqrt(draws)
        assert float((outputs.var(dim=0) / std.square() - 1).abs().max()) < 5 * math.sqrt(2 / draws)
        between = ((outputs - outputs.mean(dim=0)) / std).prod(dim=1).mean(dim=0)
        assert float(between.abs().max()) < 5 / math.sqrt(draws)

    def test_its_gradient_has_the_mean_of_flipouts(self) -> None:
        torch.manual_seed(0)
        layer, x, draws = nn.Linear(3, 2).double(), inputs_of(4, 3), 200

        def gradient_of(estimator: Estimator) -> tuple[Tensor, Tensor]:
            noisy = perturbed(layer, LearnedGaussian(0.3), include="weight", estimator=estimator).double()
            wanted = [layer.weight, noisy.rho["weight_rho"]]
            drawn = [torch.stack(torch.autograd.grad(noisy(x).pow(3).sum(), wanted)) for _ in range(draws)]
            samples = torch.stack(drawn)
            return samples.mean(dim=0), samples.std(dim=0) / math.sqrt(draws)

        (local, error), (flipout, other) = gradient_of("local"), gradient_of("flipout")
        assert float(((local - flipout) / (error**2 + other**2).sqrt()).abs().max()) < 5

    def test_inputs_of_zeros_have_finite_gradients(self) -> None:
        noisy = perturbed(nn.Linear(3, 2, bias=False), LearnedGaussian(), estimator="local")
        x = torch.zeros(N, 3, requires_grad=True)
        noisy(x).sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert all(bool(each.grad.isfinite().all()) for each in noisy.parameters() if each.grad is not None)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_small_noise_is_not_lost_in_half_precision(self, dtype: torch.dtype) -> None:
        layer = nn.Linear(64, 500, bias=False)
        nn.init.zeros_(layer.weight)
        noisy = perturbed(layer, AdditiveGaussian(1e-5), estimator="local")
        with torch.autocast("cpu", dtype):
            outputs = noisy(torch.ones(20, 64)).float().detach()
            nothing = noisy(torch.zeros(20, 64)).float().detach()
        assert float(outputs.std()) == pytest.approx(8e-5, rel=0.05)  # sqrt(64) * 1e-5
        assert float(nothing.abs().max()) < 1e-15

    @pytest.mark.parametrize(
        ("module", "size"),
        [(nn.Linear(3, 3), (N, 2, 3)), (Twice(nn.Linear(3, 3)), (N, 3)), (nn.Conv1d(3, 2, 1), (N, 3, 2))],
    )
    def test_other_uses_are_refused(self, module: nn.Module, size: tuple[int, ...]) -> None:
        noisy = perturbed(module, MultiplicativeGaussian(), estimator="local")
        with pytest.raises(UnsupportedOperationError, match=r"one vector per example.*weight' \[.*'flipout'"):
            noisy(torch.ones(size))
        with pytest.raises(ValueError, match="draws outputs of layers, not weights"):
            noisy.weights(2, 0)


class TestBatches:
    def test_the_batch_may_be_elsewhere_and_arguments_shared(self) -> None:
        torch.manual_seed(0)

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.LSTM(3, 4)
                self.head = nn.Linear(4, 2)

            def forward(self, x: Tensor, scale: Tensor, mode: str = "sum") -> dict[str, Tensor]:
                outputs, (h, _) = self.layer(x)
                assert mode == "sum"
                return {"y": self.head(outputs) * scale, "h": h}

        x, scale = inputs_of(6, N, 3), torch.tensor(2.0, dtype=torch.float64)
        noisy = perturbed(
            Model().double(), MultiplicativeGaussian(), in_dims=(1, None, None), out_dims={"y": 1, "h": 1}
        )
        with noisy.frozen(1):
            found = noisy(x, scale, "sum")
        weights = noisy.weights(N, 1)
        assert found["y"].shape == (6, N, 2)
        for n in range(N):
            own = {name: each[n] for name, each in weights.items()}
            alone = functional_call(noisy.module, own, (x[:, n : n + 1], scale))
            torch.testing.assert_close(found["y"][:, n : n + 1], alone["y"], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found["h"][:, n : n + 1], alone["h"], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
    def test_a_batch_may_be_empty(self, estimator: Estimator) -> None:
        module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2))
        noisy = perturbed(module, MultiplicativeGaussian(), estimator=estimator)
        outputs = noisy(torch.ones(0, 2, 3, 3))
        assert outputs.shape == (0, 2)
        outputs.sum().backward()

    def test_an_output_without_a_batch_is_returned_for_each_example(self) -> None:
        class Actor(nn.Linear):
            def __init__(self) -> None:
                super().__init__(3, 2)
                self.log_std = nn.Parameter(torch.zeros(2))

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return super().forward(x), self.log_std

        noisy = perturbed(Actor().double(), AdditiveGaussian(1.0), out_dims=(0, None))
        with noisy.frozen(1):
            actions, log_std = noisy(inputs_of(N, 3))
        assert actions.shape == (N, 2)
        torch.testing.assert_close(log_std, noisy.weights(N, 1)["log_std"])

    def test_keyword_arguments(self) -> None:
        noisy, x = perturbed(nn.Bilinear(3, 2, 4), MultiplicativeGaussian()), torch.ones(N, 3)
        with noisy.frozen(1):
            assert torch.equal(noisy(x, input2=torch.ones(N, 2)), noisy(input1=x, input2=torch.ones(N, 2)))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda m: m(torch.ones(2, 3), torch.ones(4, 3)), r"batches of one size along in_dims=0, got"),
            (lambda m: m(), r"got no tensor"),
            (lambda m: m(torch.tensor(1.0)), r"shape \[\] has no batch dimension 0: pass in_dims"),
        ],
    )
    def test_inputs_that_are_no_batches_are_refused(self, call: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call(perturbed(nn.Linear(3, 2), MultiplicativeGaussian()))

    def test_outputs_that_are_no_batches_are_refused(self) -> None:
        class Mean(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).mean()

        with pytest.raises(ValueError, match=r"returned shape \[\].*reduce over examples outside"):
            perturbed(Mean(3, 2), MultiplicativeGaussian())(torch.ones(N, 3))

    def test_batch_norm_sees_the_whole_batch(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2)).double()
        plain, x = copy.deepcopy(model), inputs_of(N, 1, 4, 4)
        noisy = perturbed(model, MultiplicativeGaussian(1e-13))
        torch.testing.assert_close(noisy(x), plain(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model[1].running_mean, plain[1].running_mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model[1].running_var, plain[1].running_var, rtol=1e-9, atol=1e-9)
        assert model[1].num_batches_tracked == 1
        gains = perturbed(nn.BatchNorm1d(3, affine=True).double(), MultiplicativeGaussian(), include="weight")
        rows = inputs_of(N, 3)
        with gains.frozen(1):
            found = gains(rows)
        expected = F.batch_norm(rows, None, None, training=True) * gains.weights(N, 1)["weight"]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "dims", "message"),
        [
            (nn.LSTM(3, 4), {}, "LSTM with batch_first=False has its batch in dimension 1: pass in_dims=1"),
            (nn.GRU(3, 4), {"in_dims": 1}, r"in dimension 1: pass out_dims=\(1, 1\)"),
            (nn.LSTM(3, 4, batch_first=True), {}, r"in dimension 1: pass out_dims=\(0, \(1, 1\)\)"),
            (nn.MultiheadAttention(4, 2), {}, "in dimension 1: pass in_dims=1"),
            (nn.TransformerEncoderLayer(4, 2), {}, "pass in_dims=1"),
        ],
    )
    def test_time_is_not_taken_for_the_batch(
        self, layer: nn.Module, dims: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            perturbed(layer, MultiplicativeGaussian(), **dims)
        perturbed(layer, MultiplicativeGaussian(), estimator="shared")

    def test_what_is_no_distribution_or_prior_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"expected a WeightDistribution .* got 0.5"):
            perturbed(nn.Linear(2, 2), 0.5)  # type: ignore[arg-type]
        for prior in (0.0, -1.0, float("nan"), "wide"):
            with pytest.raises(ValueError, match="prior must be a positive standard deviation or a Normal"):
                perturbed(nn.Linear(2, 2), LearnedGaussian()).kl(prior)  # type: ignore[arg-type]

    def test_an_operation_without_a_rule_is_named_with_its_remedies(self) -> None:
        class Sum(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return x @ self.weight.softmax(0).T

        model = Sum(3, 2, bias=False).double()
        with pytest.raises(
            UnsupportedOperationError, match=r"'softmax' .*'weight' \[2, 3\].*'independent'.*exclude"
        ):
            perturbed(model, MultiplicativeGaussian())(inputs_of(N, 3))
        noisy, x = perturbed(model, MultiplicativeGaussian(), estimator="independent"), inputs_of(N, 3)
        with noisy.frozen(1):
            torch.testing.assert_close(noisy(x), by_example(noisy, x, 1), rtol=1e-12, atol=1e-12)
        perturbed(model, MultiplicativeGaussian(), estimator="shared")(x)

    def test_what_vmap_cannot_run_is_told_with_the_estimator_that_can(self) -> None:
        class Reads(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) if x.sum() > 0 else x

        with pytest.raises(RuntimeError, match="must not read values") as raised:
            perturbed(Reads(3, 3), MultiplicativeGaussian())(torch.ones(N, 3))
        assert any("estimator='shared' does without" in note for note in raised.value.__notes__)
        perturbed(Reads(3, 3), MultiplicativeGaussian(), estimator="shared")(torch.ones(N, 3))

    def test_embeddings_with_gradients_of_their_own_kind_are_refused(self) -> None:
        for option in ("sparse", "scale_grad_by_freq"):
            table = nn.Embedding(4, 3, **{option: True})
            with pytest.raises(UnsupportedOperationError, match=f"set {option}=False"):
                perturbed(table, MultiplicativeGaussian())(torch.tensor([0, 1]))

    def test_what_is_no_plain_module_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got <function"):
            perturbed(lambda x: x, MultiplicativeGaussian())  # type: ignore[arg-type]
        noisy = perturbed(network(), MultiplicativeGaussian())
        with pytest.raises(TypeError, match="perturbed already"):
            perturbed(nn.Sequential(noisy), MultiplicativeGaussian())
        with pytest.raises(ValueError, match="seed must be >= 0, got -1"), noisy.frozen(-1):
            pass

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's, on compiling
    def test_a_compiled_module_is_refused(self) -> None:
        with pytest.raises(TypeError, match="pass the module that was compiled"):
            perturbed(torch.compile(network()), MultiplicativeGaussian())  # type: ignore[arg-type]

    def test_the_module_is_as_before_after_an_error(self) -> None:
        model = network()
        parameters = dict(model.named_parameters())
        with pytest.raises(RuntimeError):
            perturbed(model, MultiplicativeGaussian())(torch.ones(N, 7, dtype=torch.float64))
        assert all(each is parameters[name] for name, each in model.named_parameters())
