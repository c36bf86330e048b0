"""Live env steps per second of everything on a GPU, beside its physics alone and the CPU's process pool.

python -m benchmarks.gpu.throughput --num-envs 8192 2048 16384 --workers 1 16 --json throughput.json

For each number of envs, the evaluation of a population on engine warp, the engine by itself and every process
pool take turns within a round, as in `es-bench throughput`: equivalent cores are a ratio within a round. The
document is written after every round, so that a run that is cut off loses little. It is one long table, a row
for each contestant, metric and round.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from es_flipout.bench.machine import describe_machine
from es_flipout.bench.physics_alone import PhysicsAlone
from es_flipout.bench.throughput import FirstGeneration, Setup, alone, setups
from es_flipout.cli.process import silence_mujoco
from es_flipout.run.checkpoint import atomic_write
from es_flipout.run.config import Config, EnvConfig, ESConfig, PolicyConfig

TRAINING, PHYSICS = "everything on the device", "physics alone"
"""Contestants, besides the process pools."""
ENV_STEPS, MEMBERS, MEMORY = "env steps/s", "members/s", "GPU memory, bytes"
"""Metrics."""
Rows = list[dict[str, Any]]


class Measurement:
    """Measures one number of envs after the other and collects the rows."""

    def __init__(self, arguments: argparse.Namespace, write: Callable[[Rows], None]) -> None:
        self.rows: Rows = []
        self._arguments, self._write = arguments, write
        self._start = time.perf_counter()

    def run(self, config: Config) -> None:
        """Measures all numbers of envs, or as many as there is time for."""
        arguments = self._arguments
        every = setups(
            config,
            arguments.workers,
            cores=1,
            warp_slots=arguments.num_envs,
            warp_members_a_slot=arguments.members_per_env,
            warp_device=arguments.device,
        )
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            pools = [
                stack.enter_context(self._built(each, Path(folder)))
                for each in every
                if each.workers in arguments.workers
            ]
            for setup in (each for each in every if each.on_warp):
                began = time.perf_counter()
                self._measure(setup, pools, Path(folder))
                took, left = time.perf_counter() - began, arguments.total - self._elapsed
                if left < took:
                    self._say(f"{left:.0f} s are left, and this took {took:.0f}: no more")
                    break

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _say(self, text: str) -> None:
        print(f"{self._elapsed:6.1f} s  {text}", flush=True)

    def _built(self, setup: Setup, folder: Path) -> closing[FirstGeneration]:
        self._say(setup.name)
        return closing(FirstGeneration(setup, folder / setup.name))

    def _measure(self, setup: Setup, pools: Sequence[FirstGeneration], folder: Path) -> None:
        num_envs = setup.config.env.num_envs
        with self._built(setup, folder) as training:
            self._add(num_envs, TRAINING, MEMORY, 0, training.bytes)
            length = max(training.env_steps // setup.config.es.population_size, 1)
            with closing(PhysicsAlone(alone(setup.name), setup.config, length)) as physics:
                for index in range(self._arguments.rounds):
                    for contestant in (training, physics, *pools):
                        figures = contestant.measure(self._arguments.seconds)
                        self._add_figures(num_envs, index, figures)
                    self._write(self.rows)

    def _add_figures(self, num_envs: int, index: int, figures: Mapping[str, float]) -> None:
        for figure, value in figures.items():
            name, metric = figure.rsplit(": ", 1)
            if name.endswith(f", {PHYSICS}"):
                name = PHYSICS
            elif not name.startswith("process pool"):
                name = TRAINING
            self._add(num_envs, name, metric, index, value)
            self._say(f"{name:26} {metric:12} {value:14,.0f}")

    def _add(self, num_envs: int, contestant: str, metric: str, index: int, value: float) -> None:
        row = {"num_envs": num_envs, "contestant": contestant, "metric": metric}
        self.rows.append({**row, "round": index, "value": value})


def main(options: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Humanoid-v5")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8192, 2048, 16384])
    parser.add_argument("--members-per-env", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--pool-population-size", type=int, default=256, help="members of the process pools")
    parser.add_argument("--hidden-sizes", type=int, nargs="*", default=[256, 256])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="least duration of a measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--total", type=float, default=1e9, help="seconds; no more is begun than fits")
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    arguments = parser.parse_args(options)
    torch.set_num_threads(1)
    silence_mujoco()
    config = Config(
        env=EnvConfig(arguments.env, arguments.env_kwargs, num_envs=arguments.pool_population_size),
        policy=PolicyConfig(hidden_sizes=arguments.hidden_sizes),
        es=ESConfig(population_size=arguments.pool_population_size),
        device="cpu",
    )

    def write(rows: Rows) -> None:
        document = {
            "command": shlex.join(["python", "-m", "benchmarks.gpu.throughput", *(options or sys.argv[1:])]),
            "env": arguments.env,
            "env_kwargs": arguments.env_kwargs,
            "hidden_sizes": arguments.hidden_sizes,
            "members_per_env": arguments.members_per_env,
            "pool_population_size": arguments.pool_population_size,
            "seed": config.seed,
            "machine": describe_machine(arguments.device),
            "rows": rows,
        }
        with atomic_write(arguments.json) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())

    Measurement(arguments, write).run(config)


if __name__ == "__main__":
    main()
