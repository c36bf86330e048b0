"""Noise on weights on a GPU: the same oracle, torch's recurrent kernels, mixed precision, CUDA graphs."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from es_flipout.stochastic import LearnedGaussian, MultiplicativeGaussian, perturbed

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


def test_the_module_uses_cudnn_as_before_afterwards():
    reader, x = make(torch.float32)
    before = reader(x)
    perturbed(reader, MultiplicativeGaussian())(x).sum().backward()
    torch.testing.assert_close(reader(x), before)


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


@pytest.mark.parametrize("estimator", ["flipout", "shared"])
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
def test_a_training_step_in_a_cuda_graph_draws_anew_at_each_replay(estimator):
    reader, x = make(torch.float32)
    noisy = perturbed(reader, MultiplicativeGaussian(), estimator=estimator)

    def step() -> Tensor:
        for parameter in noisy.parameters():
            parameter.grad = None
        loss = noisy(x).square().sum()
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(4):
        graph.replay()
        losses.append(float(loss))
    assert len(set(losses)) == 4
    torch.manual_seed(7)
    graph.replay()
    first = reader.head.weight.grad.clone()
    torch.manual_seed(7)
    graph.replay()
    assert torch.equal(reader.head.weight.grad, first)
