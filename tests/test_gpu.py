"""Populations on a CUDA device (marked gpu): the dense oracle, CUDA graphs, the update."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed.timing import Operation
from benchmarks.speed.work import Work
from es_flipout import Flipout, FlipoutES, Independent, LowRank
from es_flipout.perturbations import Perturbation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = [Flipout(), Flipout(2, "gaussian"), LowRank(1), LowRank(3), Independent()]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


class RowWise(nn.Sequential):
    row_wise = True


def mlp() -> nn.Module:
    return RowWise(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(x)
        return self.attention(x, x, x)[0]


POLICIES = {"mlp": (mlp, (1, 5)), "conv": (conv_net, (2, 2, 4, 4)), "recurrent": (Recurrent, (2, 3, 5))}


def strategy(make, family: Perturbation, dtype: torch.dtype = torch.float64) -> FlipoutES:
    torch.manual_seed(0)
    policy = make().to("cuda", dtype)
    return FlipoutES(policy, population_size=8, sigma=0.1, perturbation=family)


@every_family
@pytest.mark.parametrize("name", POLICIES)
def test_rows_run_as_their_member_does_alone(name: str, family: Perturbation) -> None:
    make, shape = POLICIES[name]
    population = strategy(make, family).ask()
    members = torch.tensor([3, 0, 7, 3])  # on the CPU: they may come from anywhere
    x = torch.randn(4, *shape, device="cuda", dtype=torch.float64)
    alone = [population.module(int(m))(row) for m, row in zip(members, x, strict=True)]
    torch.testing.assert_close(
        population(x, members=members), torch.stack(alone).detach(), rtol=0, atol=1e-12
    )


@every_family
@pytest.mark.parametrize("name", POLICIES)
def test_a_captured_forward_repeats_and_follows_new_members(name: str, family: Perturbation) -> None:
    make, shape = POLICIES[name]
    population = strategy(make, family, torch.float32).ask()
    rows = population.select(torch.arange(8))
    x = torch.randn(8, *shape, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        rows.each(x)  # warms up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rows.each(x)
    if not (isinstance(family, Flipout) and family.num_bases > 1):  # whose grouping is part of the graph
        rows.assign(torch.tensor([2, 5]), torch.tensor([7, 0]))
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(captured, rows.each(x), rtol=0, atol=1e-5)


def test_a_bench_replays_what_it_measures() -> None:
    x, doubled = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    run = Operation(lambda: doubled.copy_(2 * x), Work(0, 0), is_forward=True).on(x.device)
    x.fill_(5.0)
    run()
    assert doubled.tolist() == [10.0] * 3


@every_family
def test_the_update_is_that_of_the_same_noise_on_the_cpu(family: Perturbation) -> None:
    es = strategy(mlp, family)
    population = es.ask()
    before = copy.deepcopy(es.policy).cpu()
    noise = [population.noise.member(m) for m in range(8)]
    utilities = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64)
    expected = {
        name: sum(u * each[name].cpu() for u, each in zip(utilities, noise, strict=True)) / (8 * 0.1)
        for name, _ in before.named_parameters()
    }
    for name, gradient in population.gradient(utilities.cuda()).items():
        torch.testing.assert_close(gradient.cpu(), expected[name], rtol=0, atol=1e-12)
    assert es.tell(torch.arange(8.0)).update_norm > 0  # fitness may be on the CPU, or not
    es.ask()
    assert -1 <= es.tell(torch.arange(8.0, device="cuda")).update_cosine <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_and_the_gpu_compute_the_same(dtype: torch.dtype) -> None:
    population = strategy(mlp, Flipout(), dtype).ask()
    x = torch.randn(8, 5, device="cuda", dtype=dtype)
    exact = [population.module(m).double()(row.double()) for m, row in enumerate(x)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        population(x).double(), torch.stack(exact).detach(), rtol=tolerance, atol=tolerance
    )
