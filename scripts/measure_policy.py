"""What perturbed policies cost: forwards of a population, and the gradient step, by noise family.

python -m scripts.measure_policy forward --json benchmarks/results/forward_cpu.json
python -m scripts.measure_policy gradient --json benchmarks/results/gradient_cpu.json

`forward` times one forward of P members, every family in turn within a round, against the unperturbed policy
on the same batch, and against dense weights for every member (torch.func's vmap: batched matrix products).
`gradient` measures ask, gradient and update of a Humanoid policy, each family in a process of its own
because of its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout import Flipout, FlipoutES, Independent, LowRank
from es_flipout.bench.machine import describe_machine
from es_flipout.perturbations import Perturbation

FAMILIES: dict[str, Perturbation] = {
    "flipout": Flipout(),
    "flipout, 8 bases": Flipout(num_bases=8),
    "low rank 1": LowRank(1),
    "low rank 4": LowRank(4),
    "independent": Independent(),
}
SIGMA = 0.05


class MLP(nn.Sequential):
    """A policy for Humanoid: 348-256-256-17."""

    row_wise = True

    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(348, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 17))
        )


class ConvNet(nn.Sequential):
    """The flipout paper's: 5x5 convolutions of 32 and 64 channels, for 28x28 images."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10)),
        )


class GRU(nn.Module):
    """A recurrent policy for Humanoid: a GRU cell of 256 and a linear output."""

    row_wise = True

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(348, 256)
        self.output = nn.Linear(256, 17)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(inputs, state)
        return self.output(state), state


def gru_by_hand(weights: Mapping[str, Tensor], inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `GRU` does, of operations that torch.func's vmap has a fast way for."""
    i_r, i_z, i_n = F.linear(inputs, weights["cell.weight_ih"], weights["cell.bias_ih"]).chunk(3)
    h_r, h_z, h_n = F.linear(state, weights["cell.weight_hh"], weights["cell.bias_hh"]).chunk(3)
    reset, update = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    new = torch.tanh(i_n + reset * h_n)
    state = new + update * (state - new)
    return F.linear(state, weights["output.weight"], weights["output.bias"]), state


POLICIES: dict[str, tuple[type[nn.Module], list[tuple[int, ...]]]] = {
    "MLP 348-256-256-17": (MLP, [(348,)]),
    "GRU 348-256-17": (GRU, [(348,), (256,)]),
    "ConvNet 5x5 32/64": (ConvNet, [(1, 28, 28)]),
}
"""Policies, and the shapes of what one member gets."""
DENSE_BYTES = 2**30
"""Memory for dense weights; of a larger population the same members' run again and again."""


def dense_forward(policy: nn.Module, inputs: list[Tensor]) -> Callable[[], Any]:
    """Returns the forward of as many members as there are inputs, each with dense weights of its own."""
    num_members = len(inputs[0])
    num_weights = sum(value.numel() for value in policy.parameters())
    chunk = max(1, min(num_members, DENSE_BYTES // (4 * num_weights)))
    weights = {
        name: value.detach() + SIGMA * torch.randn(chunk, *value.shape)
        for name, value in policy.named_parameters()
    }

    def run_one(weights: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        if isinstance(policy, GRU):
            return gru_by_hand(weights, *inputs)
        return torch.func.functional_call(policy, dict(weights), inputs[0].unsqueeze(0)).squeeze(0)

    def run() -> None:
        for start in range(0, num_members, chunk):
            part = [x[start : start + chunk] for x in inputs]
            some = {name: value[: len(part[0])] for name, value in weights.items()}
            torch.func.vmap(run_one)(some, *part)

    return run


@torch.no_grad()
def measure_forward(name: str, population_size: int, rounds: int) -> dict[str, Any]:
    """Returns seconds of each forward, and the median over rounds of its ratio to the unperturbed one."""
    torch.manual_seed(0)
    make, shapes = POLICIES[name]
    policy = make()
    inputs = [torch.randn(population_size, *shape) for shape in shapes]
    contestants: dict[str, Callable[[], Any]] = {"unperturbed": lambda: policy(*inputs)}
    for label, family in FAMILIES.items():
        if isinstance(family, Independent) and name.startswith("ConvNet"):
            continue  # 7 GB of noise, at the speed of dense weights
        es = FlipoutES(policy, population_size=population_size, sigma=SIGMA, perturbation=family)
        rows = es.ask().select(torch.arange(population_size))
        contestants[label] = lambda rows=rows: rows(*inputs)  # type: ignore[misc]
    contestants["dense"] = dense_forward(policy, inputs)
    seconds: dict[str, list[float]] = {label: [] for label in contestants}
    for round_ in range(rounds + 1):
        for label, run in contestants.items():
            start = time.perf_counter()
            run()
            if round_:  # the first warms up
                seconds[label].append(time.perf_counter() - start)
    plain = seconds["unperturbed"]
    ratios = {
        label: statistics.median(x / y for x, y in zip(values, plain, strict=True))
        for label, values in seconds.items()
    }
    return {"policy": name, "population_size": population_size, "seconds": seconds, "ratios": ratios}


def resident_bytes(field: str) -> int:
    """Returns what /proc says of this process's memory: VmRSS, now, or VmHWM, the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure_gradient(family: str, population_size: int, rounds: int) -> dict[str, Any]:
    """Returns seconds of ask, gradient and tell, and by how much they raised this process's peak memory."""
    torch.manual_seed(0)
    policy = MLP()
    perturbation = FAMILIES[family]
    # A first small generation loads every library that the large one uses.
    warm = FlipoutES(policy, population_size=16, sigma=SIGMA, perturbation=perturbation)
    warm.ask()
    warm.tell(torch.randn(16))
    before = resident_bytes("VmRSS")
    es = FlipoutES(policy, population_size=population_size, sigma=SIGMA, perturbation=perturbation)
    seconds: dict[str, list[float]] = {"ask": [], "gradient": [], "tell": []}
    for _ in range(rounds):
        utilities = torch.randn(population_size)
        times = [time.perf_counter()]
        population = es.ask()
        times.append(time.perf_counter())
        population.gradient(utilities)
        times.append(time.perf_counter())
        es.tell(utilities)
        times.append(time.perf_counter())
        for label, start, end in zip(seconds, times, times[1:], strict=False):
            seconds[label].append(end - start)
        del population
    return {
        "family": family,
        "population_size": population_size,
        "parameters": sum(value.numel() for value in policy.parameters()),
        "seconds": seconds,
        "peak_growth_bytes": resident_bytes("VmHWM") - before,
    }


def measure_gradients(population_size: int, rounds: int) -> list[dict[str, Any]]:
    """Runs `measure_gradient` for every family, each in a process of its own."""
    results = []
    for family in FAMILIES:
        options = ["--family", family, "--population-size", str(population_size), "--rounds", str(rounds)]
        command = [sys.executable, "-m", "scripts.measure_policy", "gradient", *options]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["forward", "gradient"])
    parser.add_argument("--population-size", type=int, help="default: 1024 (forward), 10000 (gradient)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--family", choices=list(FAMILIES), help="gradient: only this one, as JSON")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    size = arguments.population_size or {"forward": 1024, "gradient": 10_000}[arguments.what]
    if arguments.family:
        print(json.dumps(measure_gradient(arguments.family, size, arguments.rounds)))
        return
    results: list[dict[str, Any]]
    if arguments.what == "forward":
        results = [measure_forward(name, size, arguments.rounds) for name in POLICIES]
        for result in results:
            print(f"{result['policy']}, {size} members")
            for label, ratio in result["ratios"].items():
                print(
                    f"  {label:18} {statistics.median(result['seconds'][label]) * 1e3:9.2f} ms  {ratio:6.2f}"
                )
    else:
        results = measure_gradients(size, arguments.rounds)
        print(f"{size} members of {results[0]['parameters']:,} parameters; seconds, peak memory")
        for result in results:
            times = "  ".join(f"{k} {statistics.median(v):7.3f}" for k, v in result["seconds"].items())
            print(f"  {result['family']:18} {times}  {result['peak_growth_bytes'] / 1e6:7.0f} MB")
    if arguments.json:
        document = {"command": " ".join(sys.argv), "machine": describe_machine(), "results": results}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
