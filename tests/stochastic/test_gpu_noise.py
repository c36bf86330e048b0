"""Noise on weights on a GPU: the same oracle, torch's recurrent kernels, mixed precision, CUDA graphs."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from es_flipout.stochastic import DropConnect, LearnedGaussian, MultiplicativeGaussian, perturbed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
N = 6


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 3, padding=1)
        self.lstm = nn.LSTM(4, 5, batch_first=True, num_layers=2)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(torch.relu(self.convolution(x)).mT)
        return self.head(outputs[:, -1])


def make(dtype: torch.dtype = torch.float64) -> tuple[Reader, Tensor]:
    torch.manual_seed(0)
    return Reader().to("cuda", dtype), torch.randn(N, 3, 7, device="cuda", dtype=dtype)


@pytest.mark.parametrize("estimator", ["flipout", "independent", "shared"])
def test_outputs_and_gradients_are_those_of_each_examples_weights(estimator):
    reader, x = make()
    noisy = perturbed(reader, LearnedGaussian(0.2), estimator=estimator)
    parameters = list(noisy.parameters())
    with noisy.frozen(1):
        found = noisy(x)
    weights = noisy.weights(N, 1)
    with torch.backends.cudnn.flags(enabled=False):
        rows = [
            functional_call(reader, {name: each[n] for name, each in weights.items()}, (x[n : n + 1],))
            for n in range(N)
        ]
        expected = torch.cat(rows)
        wanted = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("include", ["*", "*weight_hh*"])
@pytest.mark.parametrize("estimator", ["flipout", "shared"])
def test_parameters_stay_where_they_are_in_memory(estimator, include):
    reader, x = make(torch.float32)
    before = reader(x)
    places = [parameter.data_ptr() for parameter in reader.parameters()]
    noisy = perturbed(reader, DropConnect(), estimator=estimator, include=include)
    noisy(x).sum().backward()
    noisy.eval()(x)
    torch.testing.assert_close(reader(x), before)
    assert [parameter.data_ptr() for parameter in reader.parameters()] == places


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    reader, x = make(torch.float32)
    noisy = perturbed(reader, MultiplicativeGaussian(0.5))
    with noisy.frozen(1):
        expected = noisy(x)
        with torch.autocast("cuda", dtype):
            found = noisy(x)
            loss = found.float().square().sum()
    loss.backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)
    assert all(bool(each.grad.isfinite().all()) for each in reader.parameters())


def captured(step):
    """Returns a CUDA graph of a step, and what the step returns."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


@pytest.mark.parametrize("estimator", ["flipout", "shared"])
def test_a_captured_training_step_trains_the_module_that_is_evaluated(estimator):
    reader, x = make(torch.float32)
    noisy = perturbed(reader, MultiplicativeGaussian(0.1), include="*weight_hh*", estimator=estimator)
    optimizer = torch.optim.SGD(noisy.parameters(), 0.05)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (noisy(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    graph, loss = captured(step)
    for _ in range(200):
        graph.replay()
        with torch.no_grad():
            evaluated = (noisy.eval()(x) - 1).square().mean()
        noisy.train()
    assert float(loss.detach()) < 0.01
    assert float(evaluated) < 0.01


@pytest.mark.parametrize("estimator", ["flipout", "shared"])
def test_a_training_step_in_a_cuda_graph_draws_anew_at_each_replay(estimator):
    reader, x = make(torch.float32)
    noisy = perturbed(reader, MultiplicativeGaussian(), estimator=estimator)

    def step() -> Tensor:
        for parameter in noisy.parameters():
            parameter.grad = None
        loss = noisy(x).square().sum()
        loss.backward()
        return loss

    graph, loss = captured(step)
    losses = []
    for _ in range(4):
        graph.replay()
        losses.append(float(loss.detach()))
    assert len(set(losses)) == 4
    torch.manual_seed(7)
    graph.replay()
    first = reader.head.weight.grad.clone()
    torch.manual_seed(7)
    graph.replay()
    assert torch.equal(reader.head.weight.grad, first)
