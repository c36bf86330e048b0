"""The formulas of FLOPs and bytes, against torch's flop counter and numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.families import FAMILIES, INDEPENDENT
from benchmarks.speed.models import Model, conv_net, dense_forward, gru, mlp
from benchmarks.speed.work import FlipoutWork, IndependentWork, Layer, LowRankWork, Work, total
from es_flipout import FlipoutES

P = 32
# Sixteen outputs and more: fewer are padded to sixteen.
MODELS = {"mlp": mlp([24, 32, 20]), "gru": gru(12, 16, 20), "convnet": conv_net(0.25)}
# The last layer of the ConvNet has 10 outputs.
UNPADDED = ["mlp", "gru"]


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def inputs_of(model: Model, rows: int) -> list[torch.Tensor]:
    return model.inputs(rows, torch.device("cpu"))


def flops(model: Model, family: str | None, rows: int) -> int:
    """Returns the formula for a forward."""
    work = total(layer.unperturbed(rows) for layer in model.layers)
    if family is not None:
        work += total(FAMILIES[family].work.added(layer, rows) for layer in model.layers)
    return work.flops


@pytest.mark.parametrize("name", MODELS)
def test_an_unperturbed_forward_has_the_flops_that_torch_counts(name):
    model = MODELS[name]
    inputs = inputs_of(model, P)
    assert counted(lambda: model.module(*inputs)) == flops(model, None, P)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_bytes", [2**30, 1])
def test_a_dense_forward_has_the_flops_that_torch_counts(name, max_bytes):
    model = MODELS[name]
    run = dense_forward(model, inputs_of(model, P), max_bytes)
    assert counted(run) == total(layer.dense(P) for layer in model.layers).flops


@pytest.mark.parametrize("name", MODELS)
def test_a_dense_forward_is_that_of_the_network(name, monkeypatch):
    model = MODELS[name]
    monkeypatch.setattr(torch, "randn", lambda *shape, device=None: torch.zeros(shape))
    inputs = [torch.rand(3, *shape) for shape in model.input_shapes]
    seen = []
    vmap = torch.func.vmap
    monkeypatch.setattr(torch.func, "vmap", lambda run: lambda *args: seen.append(vmap(run)(*args)))
    dense_forward(model, inputs, 2**30)()
    torch.testing.assert_close(seen, [model.module(*inputs)])


@pytest.mark.parametrize("name", UNPADDED)
@pytest.mark.parametrize("family", ["flipout", "flipout, 8 bases"])
def test_a_flipout_forward_has_the_flops_that_torch_counts(name, family):
    model = MODELS[name]
    es = FlipoutES(model.module, population_size=P, sigma=0.1, perturbation=FAMILIES[family].perturbation)
    rows, inputs = es.ask().select(torch.arange(P)), inputs_of(model, P)
    # Each of 8 bases has a multiple of 4 rows: no row is padded either.
    assert counted(lambda: rows(*inputs)) == flops(model, family, P)


@pytest.mark.parametrize("family", ["low rank 4", "independent"])
def test_the_other_families_have_the_flops_that_torch_counts(family):
    # With one row a member they are no matrix products, which is all that torch counts; with B rows they are.
    model, batch = MODELS["mlp"], 4
    es = FlipoutES(model.module, population_size=P, sigma=0.1, perturbation=FAMILIES[family].perturbation)
    rows, inputs = es.ask().select(torch.arange(P)), torch.randn(P, batch, 24)
    assert counted(lambda: rows.each(inputs)) == flops(model, family, P * batch)


# Independent noise is added up row by row, which torch does not count.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != INDEPENDENT])
@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_has_the_flops_that_torch_counts(name, family):
    model = MODELS[name]
    es = FlipoutES(model.module, population_size=P, sigma=0.1, perturbation=FAMILIES[family].perturbation)
    population, utilities = es.ask(), torch.randn(P)
    expected = total(FAMILIES[family].work.gradient(layer, P // 2) for layer in model.layers)
    assert counted(lambda: population.gradient(utilities)) == expected.flops


def test_bytes_by_hand():
    # 3 inputs, 2 outputs, kernel 4, 5 places: 24 weights, 2 biases, 10 rows of 25 numbers.
    layer = Layer(3, 2, kernel=4, places=5)
    assert layer.unperturbed(10) == Work(2 * 10 * 24 * 5, 4 * (26 + 10 * 25))
    assert layer.dense(10) == Work(2 * 10 * 24 * 5, 4 * 10 * (26 + 25))
    # flipout: 7 bases, 5 signs a member, a bias a member
    assert FlipoutWork(7).added(layer, 10) == Work(2 * 10 * 24 * 5, 4 * (7 * 24 + 10 * 5 + 10 * 2))
    assert FlipoutWork(7).ask(layer, 10) == Work(0, 10 * 5 + 4 * (7 * 24 + 10 * 2))
    assert FlipoutWork(7).gradient(layer, 10) == Work(2 * 10 * 2 * (3 + 1), 10 * 5 + 4 * (168 + 20 + 26))
    # rank 6: factors of 2 and of 3 x 4
    assert LowRankWork(6).added(layer, 10) == Work(2 * 10 * 5 * 6 * 14, 4 * 10 * (6 * 14 + 2))
    assert LowRankWork(6).gradient(layer, 10) == Work(2 * 10 * (6 * 24 + 2), 4 * (10 * 86 + 26))
    assert IndependentWork().added(layer, 10) == Work(2 * 10 * 24 * 5, 4 * 10 * 26)
    assert IndependentWork().gradient(layer, 10) == Work(2 * 10 * 26, 4 * 11 * 26)


def test_layers_are_the_parameters():
    for model in MODELS.values():
        # torch's GRU cell has two biases, and so has its list of layers
        assert model.num_parameters == sum(value.numel() for value in model.module.parameters())
