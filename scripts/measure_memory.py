"""Memory that a population takes: ask, one forward of some slots, and tell, against dense weights.

python scripts/measure_memory.py --population-size 10000 --hidden-sizes 256 256
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

from es_flipout import FlipoutES, MLPPolicy
from es_flipout.bench.machine import describe_machine

HUMANOID_OBSERVATIONS, HUMANOID_ACTIONS = 348, 17


def resident_bytes(field: str) -> int:
    """Returns what /proc says of this process's memory: VmRSS, now, or VmHWM, the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population-size", type=int, default=10_000)
    parser.add_argument("--hidden-sizes", type=int, nargs="*", default=[256, 256])
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    size = arguments.population_size
    observations = spaces.Box(-np.inf, np.inf, (HUMANOID_OBSERVATIONS,))
    actions = spaces.Box(-0.4, 0.4, (HUMANOID_ACTIONS,))
    policy = MLPPolicy(observations, actions, hidden_sizes=arguments.hidden_sizes)
    # A first small generation loads every library that the large one uses.
    for population_size in (2, size):
        before = resident_bytes("VmRSS")
        es = FlipoutES(policy, population_size=population_size)
        population = es.ask()
        for start in range(0, population_size, arguments.slots):
            members = torch.arange(start, min(start + arguments.slots, population_size))
            population.select(members)(torch.randn(len(members), HUMANOID_OBSERVATIONS))
        es.tell(torch.randn(population_size))
    parameters = sum(value.numel() for value in policy.parameters())
    result = {
        "command": " ".join(sys.argv),
        "population_size": size,
        "parameters": parameters,
        "dense_bytes": 4 * parameters * size,
        "peak_growth_bytes": resident_bytes("VmHWM") - before,
        "seed": 0,
        "machine": describe_machine(),
    }
    print(
        f"{size:,} members of {parameters:,} parameters: dense weights {result['dense_bytes'] / 1e9:.2f} GB, "
        f"a generation by flipout raised the process's peak by {result['peak_growth_bytes'] / 1e6:.0f} MB"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
