"""What weights of each example's own cost: a forward and a backward, beside those of an unperturbed network.

The paper puts flipout at about twice the cost, because it takes two products instead of one. Contestants
take turns within each round, and ratios are taken within a round. An LSTM is perturbed hidden-to-hidden only,
as in the paper, the other networks in all weights but the biases. `nn.LSTM` runs in one kernel (cuDNN's on a
GPU) if all examples have the same weights; a loop over time steps is the other thing to compare with. On a
GPU, a second time is that of a CUDA graph, without what Python takes to launch kernels.

Memory is what a step holds at most, above what was held before: according to torch's allocator on a GPU, and
on a CPU to the allocations that torch's profiler sees. The gradients of the weights are part of it, scratch
space that a library allocates for itself is not.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.paper.lstm_loop import LSTMLoop
from benchmarks.paper.models import convnet, fully_connected
from benchmarks.paper.options import plain
from benchmarks.speed.tables import markdown, two_decimals
from benchmarks.speed.timing import Stopwatch, available_device, recorded, turns
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results, number
from es_flipout.processes import available_cores
from es_flipout.run.machine import describe_machine
from es_flipout.stochastic import MultiplicativeGaussian, perturbed

UNPERTURBED = "unperturbed"
SECONDS, GRAPH, MEMORY = "forward + backward, s", "in a CUDA graph, s", "peak memory, bytes"
"""Metrics."""
SIDE = 28
"""Height and width of an image."""
QUICK = "--batches 4 --hidden 8 8 --channels 2 2 --lstm-hidden 8 --length 3 --rounds 2 --seconds 0.001"


class TorchLSTM(nn.Module):
    """`nn.LSTM`, of which only the outputs of all steps are used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns h of every step, [B, T, H]."""
        outputs: Tensor = self.lstm(x)[0]
        return outputs


@dataclass(frozen=True)
class Case:
    """A network, which of its weights get noise, and how.

    Attributes:
        make: makes the network.
        shape: of an example.
        include: pattern of the names of perturbed weights.
        estimators: to be compared.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    include: str
    estimators: tuple[str, ...]


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """Returns the networks by name."""
    pixels, width = (1, SIDE, SIDE), options.lstm_hidden
    sequence = (options.length, width)
    every = ("shared", "flipout", "independent")
    hidden, channels = "-".join(map(str, options.hidden)), "-".join(map(str, options.channels))
    steps = f"{width}, {options.length} steps"
    return {
        f"FC {hidden}": Case(
            lambda: fully_connected(SIDE**2, options.hidden), pixels, "*weight", (*every, "local")
        ),
        f"ConvNet 5x5 {channels}": Case(
            lambda: convnet(SIDE, options.channels, options.hidden[-1]), pixels, "*weight", every
        ),
        f"nn.LSTM {steps}": Case(lambda: TorchLSTM(width), sequence, "*weight_hh*", every),
        f"LSTM as a loop {steps}": Case(lambda: LSTMLoop(width, width), sequence, "*weight_hh*", every),
    }


def step_of(case: Case, estimator: str, batch: int, options: argparse.Namespace) -> Callable[[], None]:
    """Returns what computes the gradients of a mini-batch of noise."""
    torch.manual_seed(options.seed)
    network = case.make().to(options.device)
    if estimator != UNPERTURBED:
        network = perturbed(network, MultiplicativeGaussian(1.0), include=case.include, estimator=estimator)
    network.train()
    x = torch.randn(batch, *case.shape, device=options.device)
    weights = [*network.parameters()]

    def run() -> None:
        torch.autograd.grad(network(x).square().mean(), weights)

    return run


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that torch holds at once during a call, above what it held before."""
    run()  # whatever stays from a first call
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative if freed
        most = max(most, held)
    return most


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures every case and batch size; all estimators in turns."""
    for name, case in cases(options).items():
        for batch in options.batches:
            steps = {
                estimator: step_of(case, estimator, batch, options)
                for estimator in (UNPERTURBED, *case.estimators)
                if estimator != "independent" or batch <= options.independent_up_to
            }
            where = {"case": name, "batch": batch}
            for estimator, step in steps.items():
                results.add(0, estimator, {MEMORY: peak_memory(step, options.device)}, **where)
            watches = {
                (estimator, SECONDS): Stopwatch(step, options.device, options.seconds)
                for estimator, step in steps.items()
            }
            if options.device.type == "cuda":
                for estimator, step in steps.items():
                    graph = Stopwatch(recorded(step, options.device), options.device, options.seconds)
                    watches[estimator, GRAPH] = graph
            for index, label in turns([" / ".join(key) for key in watches], options.rounds):
                estimator, metric = label.split(" / ")
                results.add(index, estimator, {metric: watches[estimator, metric]()}, **where)
            if options.json:
                results.write(options.json)


def table(results: Results, metric: str = SECONDS) -> str:
    """Returns milliseconds of an unperturbed step and the others' in units of it, or the same of memory."""
    scale, unit = (1e-6, "MB") if metric == MEMORY else (1e3, "ms")
    others = [name for name in results.column("contestant") if name != UNPERTURBED]
    rows = []
    for name, batch in dict.fromkeys((row["case"], row["batch"]) for row in results.rows):
        own = results.where(case=name, batch=batch)
        base = own.spread(UNPERTURBED, metric).median
        ratios = [own.ratios((other, metric), (UNPERTURBED, metric)) for other in others]
        cells = [
            (number(each[0]) if metric == MEMORY else two_decimals(each)) if each else "-" for each in ratios
        ]
        rows.append([f"{name}, N = {batch:,}", number(scale * base), *cells])
    return markdown(["", f"{UNPERTURBED}, {unit}", *others], rows)


def tables(results: Results) -> str:
    """Returns the tables of every metric that was measured."""
    metrics = [metric for metric in (SECONDS, GRAPH, MEMORY) if results.where(metric=metric).rows]
    return "\n\n".join(f"{metric.partition(',')[0]}:\n\n{table(results, metric)}" for metric in metrics)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    about = str(__doc__).partition("\n")[0]
    parser = UsageParser(prog="benchmarks.paper.cost", description=about, allow_abbrev=False)
    option = parser.add_argument
    option("--batches", type=COUNT, nargs="+", default=[32, 256], help="sizes of the mini-batch")
    option("--independent-up-to", type=COUNT, default=32, help="mini-batch with a draw for each example")
    option("--hidden", type=COUNT, nargs="+", default=[512, 512], help="of the fully connected network")
    option("--channels", type=COUNT, nargs="+", default=[32, 64], help="of the ConvNet")
    option("--lstm-hidden", type=COUNT, default=256, help="(paper: 1,000)")
    option("--length", type=COUNT, default=20, help="time steps (paper: 100)")
    option("--rounds", type=COUNT, default=5)
    option("--seconds", type=AMOUNT, default=0.3, help="least duration of a measurement")
    option("--device", type=available_device, default="cpu")
    option("--threads", type=COUNT, default=available_cores())
    option("--seed", type=SEED, default=0)
    option("--quick", action="store_true", help="tiny sizes, for a look at whether it runs")
    option("--json", type=Path, metavar="FILE", help="file for the results")
    return parser.parse_args([*QUICK.split(), *words] if "--quick" in words else words)


def main(words: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return run_command("benchmarks.paper.cost", _run, words)


def _run(words: Sequence[str]) -> int:
    options = parse(words)
    torch.set_num_threads(options.threads)
    command = shlex.join(["python", "-m", "benchmarks.paper.cost", *words])
    machine = describe_machine(str(options.device))
    results = Results({"command": command, **plain(options), "machine": machine})
    measure(options, results)
    if options.json:
        results.write(options.json)
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
