"""Trains a classifier with random weights and tracks its expected training loss.

A step of Adam minimizes, over a mini-batch of B examples drawn with replacement from a set of N,

    L = 1/B sum_n cross entropy(y_n, f(x_n; W_n)) + KL(q || prior) / N,

where the W_n have distribution q: different ones (flipout, independent) or a single one (shared). The
second term is there for Bayes by Backprop only. On a GPU, a step can be recorded as a CUDA graph.

All estimators are judged by the same Monte Carlo estimate of E[L]: the same training images and seeds,
with weights by flipout. With shared weights, the loss of a mini-batch would depend on a single draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.images import Images
from benchmarks.speed.timing import recorded
from es_flipout.stochastic import Estimator, LearnedGaussian, MultiplicativeGaussian, perturbed

WEIGHTS = "*weight"
"""Parameters that are random; biases are not."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how it is judged.

    Attributes:
        make: returns the network, with initial weights from torch's default generator.
        noise: distribution of the weights.
        prior_std: standard deviation of the prior, for a learned distribution.
        images: on the device that trains.
        batch_size: examples per step.
        interval: steps from one estimate of the expected loss to the next.
        judged: number of training images that estimate the expected loss.
        draws: weights drawn for each of them.
        is_recorded: whether steps are replayed as a CUDA graph.
    """

    make: Callable[[], nn.Module]
    noise: LearnedGaussian | MultiplicativeGaussian
    prior_std: float
    images: Images
    batch_size: int
    interval: int
    judged: int
    draws: int
    is_recorded: bool


@dataclass
class Curve:
    """The progress of a run, in lists of the same length, from iteration 0.

    Attributes:
        iteration: steps so far.
        seconds: training time so far, without judging.
        objective: estimate of E[L].
        cross_entropy: its first term.
        test_error: share of held-out images that the mean weights get wrong at the end.
        complete: whether all iterations were made.
    """

    iteration: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    cross_entropy: list[float] = field(default_factory=list)
    test_error: float = 1.0
    complete: bool = False


class Training:
    """A network with random weights that is being trained."""

    def __init__(self, task: Task, estimator: Estimator, lr: float, seed: int) -> None:
        """Creates the network, with the same initial weights for every estimator."""
        self._task, self._device = task, task.images.train_x.device
        torch.manual_seed(seed)
        model = task.make().to(self._device)
        self._noisy = perturbed(model, task.noise, include=WEIGHTS, estimator=estimator).train()
        self._judge = perturbed(deepcopy(model), task.noise, include=WEIGHTS, estimator="flipout").train()
        self._parameters = [each for each in self._noisy.parameters() if each.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters, lr=lr, capturable=task.is_recorded)
        self.step: Callable[[], object] = self._record() if task.is_recorded else self._step

    def _step(self) -> None:
        task, images = self._task, self._task.images
        index = torch.randint(len(images.train_y), (task.batch_size,), device=self._device)
        loss = F.cross_entropy(self._noisy(images.train_x[index]), images.train_y[index])
        gradients = torch.autograd.grad(loss + self._divergence(), self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    def _record(self) -> Callable[[], object]:
        """Returns a step as a CUDA graph, and undoes the warm-up steps."""
        before = [each.detach().clone() for each in self._parameters]
        step = recorded(self._step, self._device)
        with torch.no_grad():
            for parameter, values in zip(self._parameters, before, strict=True):
                parameter.copy_(values)
        for state in self._optimizer.state.values():
            for moment in state.values():
                moment.zero_()
        return step

    def _divergence(self) -> Tensor | float:
        if not isinstance(self._task.noise, LearnedGaussian):
            return 0.0
        return self._noisy.kl(self._task.prior_std) / len(self._task.images.train_y)

    @torch.no_grad()
    def expected_loss(self) -> tuple[float, float]:
        """Returns estimates of E[L] and of its cross entropy."""
        task = self._task
        self._judge.load_state_dict(self._noisy.state_dict())
        x, y = task.images.train_x[: task.judged], task.images.train_y[: task.judged]
        total = torch.zeros((), device=self._device)
        for seed in range(task.draws):
            with self._judge.frozen(seed):
                total += F.cross_entropy(self._judge(x), y)
        cross_entropy = float(total) / task.draws
        return cross_entropy + float(self._divergence()), cross_entropy

    @torch.no_grad()
    def test_error(self) -> float:
        """Returns the share of held-out images that the mean weights get wrong."""
        images = self._task.images
        self._noisy.eval()
        wrong = self._noisy(images.test_x).argmax(dim=1) != images.test_y
        self._noisy.train()
        return float(wrong.double().mean())

    def run(self, iterations: int, deadline: float) -> Curve:
        """Trains until all iterations are done or `time.perf_counter` passes the deadline."""
        curve, made, seconds = Curve(), 0, 0.0
        while True:
            objective, cross_entropy = self.expected_loss()
            curve.iteration.append(made)
            curve.seconds.append(seconds)
            curve.objective.append(objective)
            curve.cross_entropy.append(cross_entropy)
            if made >= iterations or time.perf_counter() > deadline:
                break
            steps = min(self._task.interval, iterations - made)
            start = time.perf_counter()
            for _ in range(steps):
                self.step()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds += time.perf_counter() - start
            made += steps
        curve.test_error, curve.complete = self.test_error(), made >= iterations
        return curve


def train(
    task: Task, estimator: Estimator, lr: float, seed: int, iterations: int, deadline: float
) -> dict[str, Any]:
    """Trains one network and returns its row of the results: its settings, and the fields of `Curve`."""
    curve = Training(task, estimator, lr, seed).run(iterations, deadline)
    return {"estimator": estimator, "lr": lr, "seed": seed, **vars(curve)}
