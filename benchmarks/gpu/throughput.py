"""Live env steps per second of everything on a GPU, beside its physics alone and the CPU's process pool.

python -m benchmarks.gpu.throughput --num-envs 8192 2048 16384 --workers 1 16 --json throughput.json

As `es-bench throughput --warp-envs`, but one number of envs after the other, since memory holds one of
them, each with every process pool in its rounds; and the results are written after every round, so that a run
that is cut off loses little.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from es_flipout.cli.process import silence_mujoco
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import FirstGeneration, contestants
from es_flipout.run.config import Config, EnvConfig, ESConfig, PolicyConfig
from es_flipout.run.machine import describe_machine


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures all numbers of envs, or as many as there is time for."""
    size, start = options.pool_population_size, time.perf_counter()
    config = Config(
        env=EnvConfig(options.env, options.env_kwargs, num_envs=size),
        policy=PolicyConfig(hidden_sizes=options.hidden_sizes),
        es=ESConfig(population_size=size),
        device="cpu",
    )
    every = contestants(
        config,
        options.workers,
        cores=1,
        warp_envs=options.num_envs,
        warp_members_per_env=options.members_per_env,
        warp_device=options.device,
    )

    def elapsed() -> float:
        return time.perf_counter() - start

    def say(text: str) -> None:
        print(f"{elapsed():6.1f} s  {text}", flush=True)

    def built(name: str, index: int) -> FirstGeneration:
        say(name)
        run = FirstGeneration(every[name].config)
        results.settings["contestants"][name] = every[name].settings
        results.add(index, name, run.once)
        return run

    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(closing(built(name, 0)))
            for name, each in every.items()
            if each.settings["workers"] in options.workers
        }
        on_warp = [name for name, each in every.items() if each.config.env.engine == "warp"]
        for block, name in enumerate(on_warp):
            began, first = elapsed(), block * options.rounds
            with closing(built(name, first)) as training:
                for index in range(first, first + options.rounds):
                    for each, run in {name: training, **pools}.items():
                        figures = run.measure(options.seconds)
                        results.add(index, each, figures)
                        for metric, value in figures.items():
                            say(f"{each}: {value:,.0f} {metric}")
                    results.write(options.json)
            took, left = elapsed() - began, options.total - elapsed()
            if left < took:
                say(f"{left:.0f} s are left, and this took {took:.0f}: no more")
                break


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    option = parser.add_argument
    option("--env", default="Humanoid-v5")
    option("--env-kwargs", type=json.loads, default={}, help="as JSON")
    option("--num-envs", type=int, nargs="+", default=[8192, 2048, 16384])
    option("--members-per-env", type=int, default=4)
    option("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    option("--pool-population-size", type=int, default=256, help="members of the process pools")
    option("--hidden-sizes", type=int, nargs="*", default=[256, 256])
    option("--device", default="cuda")
    option("--seconds", type=float, default=2.0, help="least duration of a measurement")
    option("--rounds", type=int, default=2)
    option("--total", type=float, default=1e9, help="seconds; no more is begun than fits")
    option("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    silence_mujoco()
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    settings |= {"contestants": {}, "price_per_hour": {}, "machine": describe_machine(options.device)}
    command = shlex.join(["python", "-m", "benchmarks.gpu.throughput", *words])
    measure(options, Results({"command": command, **settings}))


if __name__ == "__main__":
    main()
