"""Noise on weights in other people's training: mixed precision, compilation, ranks, second derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from es_flipout.stochastic import LearnedGaussian, MultiplicativeGaussian, perturbed

N = 6


class Reader(nn.Module):
    """A convolution, a recurrent layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 3, padding=1)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(torch.tanh(self.convolution(x)).mT)
        return self.head(outputs[:, -1])


def make(dtype: torch.dtype = torch.float64) -> tuple[Reader, Tensor]:
    torch.manual_seed(0)
    return Reader().to(dtype), torch.randn(N, 3, 4, dtype=dtype)


def test_second_derivatives_are_those_of_each_examples_weights() -> None:
    reader, x = make()
    noisy = perturbed(reader, LearnedGaussian(0.2)).double()
    parameters = list(noisy.parameters())

    def second(outputs: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(outputs.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), parameters)

    with noisy.frozen(1):
        found = second(noisy(x))
    weights = noisy.weights(N, 1)
    rows = [
        functional_call(reader, {name: each[n] for name, each in weights.items()}, (x[n : n + 1],))
        for n in range(N)
    ]
    for one, other in zip(found, second(torch.cat(rows)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["flipout", "shared", "independent"])
def test_mixed_precision(estimator) -> None:
    reader, x = make(torch.float32)
    noisy = perturbed(reader, MultiplicativeGaussian(0.5), estimator=estimator)
    with noisy.frozen(1):
        expected = noisy(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = noisy(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)
    found.float().square().sum().backward()
    assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in reader.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's, on compiling
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # likewise
def test_torch_compile_leaves_the_noisy_call_out_and_compiles_around_it() -> None:
    reader, x = make()
    noisy = perturbed(reader, MultiplicativeGaussian())

    def loss_of(x: Tensor) -> Tensor:
        return (noisy(x * 2) - 1).square().mean()

    compiled = torch.compile(loss_of, backend="aot_eager")
    with noisy.frozen(1):
        expected, found = loss_of(x), compiled(x)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, list(noisy.parameters()))
    for one, other in zip(torch.autograd.grad(found, list(noisy.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert float(compiled(x).detach()) != float(compiled(x).detach())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_module_draws_the_same_again(reentrant: bool) -> None:
    reader, x = make()
    noisy = perturbed(reader, MultiplicativeGaussian())
    x.requires_grad_(True)
    torch.manual_seed(3)
    wanted = torch.autograd.grad(noisy(x).square().sum(), [x])
    torch.manual_seed(3)
    outputs = checkpoint(noisy, x, use_reentrant=reentrant)
    outputs.square().sum().backward()
    torch.testing.assert_close(x.grad, wanted[0])


def test_training_fits_and_learns_where_noise_may_be() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 2)
    y = x[:, :1] * 2  # the second input is of no use
    noisy = perturbed(nn.Linear(2, 1), LearnedGaussian(0.1), include="weight")
    optimizer = torch.optim.Adam(noisy.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (noisy(x) - y).square().mean() / 2 + noisy.kl(1.0) / len(x)
        loss.backward()
        optimizer.step()
    # The exact posterior of Bayesian linear regression, noise and prior of standard deviation 1
    covariance = torch.linalg.inv(x.T @ x + torch.eye(2))
    mean = covariance @ x.T @ y
    std = nn.functional.softplus(noisy.rho["weight_rho"]).detach()
    torch.testing.assert_close(noisy.module.weight.detach(), mean.T, atol=0.03, rtol=0)
    expected = torch.linalg.inv(covariance).diagonal().rsqrt()  # the mean-field optimum
    torch.testing.assert_close(std[0], expected, rtol=0.25, atol=0)


def _train_as_rank(rank: int, meeting: str, found: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    reader, x = make()
    noisy = perturbed(reader, LearnedGaussian(0.1)).double()
    parallel = DistributedDataParallel(noisy)
    torch.manual_seed(rank)
    parallel(x + rank).square().sum().backward()
    torch.save([each.grad for each in noisy.parameters()], f"{found}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_averages_the_gradients_of_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_as_rank, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    alone = []
    for rank in range(2):
        reader, x = make()
        noisy = perturbed(reader, LearnedGaussian(0.1)).double()
        torch.manual_seed(rank)
        noisy(x + rank).square().sum().backward()
        alone.append([each.grad for each in noisy.parameters()])
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        for found, *each in zip(gradients, *alone, strict=True):
            torch.testing.assert_close(found, sum(each) / 2)
