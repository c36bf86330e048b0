"""One training run of a language model: truncated back-propagation through time, with early stopping.

The text is cut into as many streams as there are sequences in a batch, and the state is carried from each
sequence to the next of its stream. On a GPU the first iterations are eager; then a whole iteration (noise,
forward, backward, clipping, update) is captured in a CUDA graph and replayed on the run's own stream with the
run's own random generator, so that several runs overlap.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.lstm_model import LanguageModel, Regularization, Shape
from benchmarks.paper.text import Text

EAGER_ITERATIONS = 3
"""Before an iteration is captured."""
IN_FLIGHT = 2
"""Iterations of a run that are queued on the GPU before the program waits."""
PATIENCE = 5
"""Epochs without a better validation loss, after which SGD's rate is divided (Merity et al., 2018)."""
DECAY = 4.0


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        optimizer: AMSGrad, or SGD whose rate is divided by DECAY when validation stops improving.
        rate: learning rate.
        batch: sequences per batch, and streams of the text.
        length: tokens of a sequence.
        clip: largest norm of the gradient.
    """

    optimizer: Literal["amsgrad", "sgd"] = "amsgrad"
    rate: float = 0.002
    batch: int = 32
    length: int = 100
    clip: float = 1.0


class Epoch(NamedTuple):
    """What an epoch came to: losses in nats per token, and seconds per iteration (nan on a GPU).

    Epochs are counted from 1; one that was cut short has a fraction.
    """

    index: float
    training: float
    validation: float
    seconds: float


class Clock(NamedTuple):
    """When a program must have stopped, in `time.monotonic()` seconds."""

    deadline: float

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.deadline - time.monotonic()


def streams(tokens: Tensor, batch: int) -> Tensor:
    """Returns the tokens as streams of equal length, of shape [batch, len(tokens) // batch]."""
    length = len(tokens) // batch
    return tokens[: batch * length].view(batch, length)


class Run:
    """A model in training."""

    def __init__(
        self,
        text: Text,
        shape: Shape,
        regularization: Regularization,
        training: Training,
        seed: int,
        device: torch.device,
    ) -> None:
        self.training, self.device = training, device
        self.steps = 0
        self.best: Epoch | None = None
        self.history: list[float] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.is_slow = False
        self.host_seconds = 0.0
        self._queued: deque[torch.cuda.Event] = deque()
        self._generator = torch.Generator(device).manual_seed(seed)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with self._own():
            with torch.random.fork_rng(devices=[]):  # the weights of a seed, the same for all methods
                torch.default_generator.manual_seed(seed)
                model = LanguageModel(len(text.vocabulary), shape, regularization)
            self.model = model.to(device).train()
            self.parameters = [each for each in model.parameters() if each.requires_grad]
            self.optimizer = self._make_optimizer()
            self.train, self.valid, self.test = (
                streams(part.to(device), training.batch) for part in (text.train, text.valid, text.test)
            )
            self.iterations = (self.train.shape[1] - 1) // training.length
            self.state = self._zero_state()
            sequences = (training.batch, training.length)
            self.x, self.y = (torch.zeros(sequences, dtype=torch.long, device=device) for _ in "xy")
            self.loss_sum, self.rate_scale = torch.zeros((), device=device), torch.ones((), device=device)
        if self.iterations < 1:
            raise ValueError(
                f"the training text is shorter than {training.batch} x {training.length} + 1 tokens"
            )
        for _ in range(2):  # the first call may have to start libraries
            start = time.perf_counter()
            self._loss(self.valid[:, : training.length + 1])
            self.seconds_per_token = (time.perf_counter() - start) / (training.batch * training.length)
        self._busy, self._since = 0.0, 0
        self._best_weights = self._weights()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self.training.optimizer == "sgd":
            return torch.optim.SGD(self.parameters, lr=self.training.rate)
        on_gpu = self.device.type == "cuda"
        return torch.optim.Adam(self.parameters, lr=self.training.rate, amsgrad=True, capturable=on_gpu)

    def _zero_state(self) -> tuple[Tensor, Tensor]:
        units = self.model.decoder.in_features
        shape = (len(self.model.layers), self.training.batch, units)
        return torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        """Makes the run's stream and random numbers those of the device."""
        if self._stream is None:
            before = torch.get_rng_state()
            torch.set_rng_state(self._generator.get_state())
            try:
                yield
            finally:
                self._generator.set_state(torch.get_rng_state())
                torch.set_rng_state(before)
            return
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self._generator.graphsafe_get_state())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            default.graphsafe_set_state(before)

    @property
    def epoch(self) -> float:
        """Epochs so far."""
        return self.steps / self.iterations

    def advance(self, clock: Clock) -> Epoch | None:
        """Does one iteration; returns the epoch that it was the last of, if it was."""
        start = time.perf_counter()
        with self._own():
            self._step()
        self.steps += 1
        self._since += 1
        seconds = time.perf_counter() - start
        self._busy += seconds
        self.host_seconds += seconds
        return self.end_epoch(clock) if self.steps % self.iterations == 0 else None

    def _step(self) -> None:
        begin = self.steps % self.iterations * self.training.length
        self.x.copy_(self.train[:, begin : begin + self.training.length])
        self.y.copy_(self.train[:, begin + 1 : begin + 1 + self.training.length])
        if self._stream is None:
            self._iterate()
            return
        if self.graph is None and not self.is_slow and self.steps >= EAGER_ITERATIONS:
            self._capture()
        if self.graph is None:
            self._iterate()
        else:
            self.graph.replay()
        done = torch.cuda.Event()
        done.record()
        self._queued.append(done)
        if len(self._queued) > IN_FLIGHT:
            self._queued.popleft().synchronize()

    def _iterate(self) -> None:
        """Trains on x and y: all of it static tensors, so that it can be captured."""
        logits, state = self.model(self.x, self.state)
        loss = F.cross_entropy(logits.flatten(0, 1), self.y.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
        if self.training.optimizer == "sgd":
            for parameter in self.parameters:
                parameter.grad.mul_(self.rate_scale)
        self.optimizer.step()
        with torch.no_grad():
            self.loss_sum += loss
            for own, new in zip(self.state, state, strict=True):
                own.copy_(new)

    def _capture(self) -> None:
        try:
            self.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self._iterate()
            self.graph = graph
        except Exception as error:  # whatever it is, the run can go on without a graph
            self.is_slow = True
            print(f"not captured, goes on eagerly: {' '.join(str(error).split())[:300]}", flush=True)
            torch.cuda.synchronize()

    def end_epoch(self, clock: Clock) -> Epoch:
        """Validates, and remembers the weights if they are the best so far.

        Raises:
            ArithmeticError: if a loss is not finite.
        """
        with self._own():
            training = self.loss_sum.item() / self._since
            self.loss_sum.zero_()
            for each in self.state:
                each.zero_()
        start = time.perf_counter()
        validation = self.loss("valid", clock)
        self.seconds_per_token = (time.perf_counter() - start) / self.valid.numel()
        if not math.isfinite(training + validation) and clock.left > 0:
            raise ArithmeticError(f"training loss {training:g}, validation loss {validation:g}")
        seconds = math.nan if self._stream else self._busy / self._since
        self._busy, self._since = 0.0, 0
        ended = Epoch(self.epoch, training, validation, seconds)
        if validation < (self.best.validation if self.best else math.inf):
            self.best = ended
            self._best_weights = self._weights()
        if validation > min(self.history[:-PATIENCE], default=math.inf):
            with self._own():
                self.rate_scale /= DECAY
        self.history.append(validation)
        return ended

    @property
    def is_within_epoch(self) -> bool:
        """Whether iterations came after the last validation."""
        return self._since > 0

    def _weights(self) -> dict[str, Tensor]:
        with self._own():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def loss(self, part: Literal["valid", "test"], clock: Clock) -> float:
        """Returns nats per token with the mean weights, or nan if the time does not suffice."""
        return self._loss(getattr(self, part), clock)

    def _loss(self, tokens: Tensor, clock: Clock | None = None) -> float:
        length, total = self.training.length, 0.0
        self.model.eval()
        try:
            with self._own(), torch.no_grad():
                state, sums = self._zero_state(), torch.zeros((), device=self.device)
                for begin in range(0, tokens.shape[1] - 1, length):
                    if clock and clock.left < 0:
                        return math.nan
                    x = tokens[:, begin : min(begin + length, tokens.shape[1] - 1)]
                    y = tokens[:, begin + 1 : begin + 1 + x.shape[1]]
                    logits, state = self.model(x, state)
                    sums += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
                total = sums.item()
        finally:
            self.model.train()
        return total / (tokens.shape[0] * (tokens.shape[1] - 1))

    @property
    def evaluation_seconds(self) -> float:
        """About how long `end_epoch` and `finish` take."""
        return self.seconds_per_token * (self.valid.numel() + self.test.numel())

    def finish(self, clock: Clock) -> float:
        """Returns the test loss of the best epoch, or nan if the time does not suffice."""
        with self._own():
            self.model.load_state_dict(self._best_weights)
        return self.loss("test", clock)
