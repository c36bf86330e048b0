"""Where the time of a generation on engine warp goes: physics, what is between its steps, and the rest.

python -m scripts.profile_device --env Humanoid-v5 --num-slots 8192 --json profile.json

Each part is timed with the device idle before and after it, which costs the overlap of host and device: the
shares are right, the sum is more than a generation takes. --kernels also names the GPU's kernels, from one
more generation under torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from es_flipout.bench.machine import describe_machine
from es_flipout.cli.process import silence_mujoco
from es_flipout.rollout import OnDeviceEvaluator, reset_seeds
from es_flipout.rollout.device_envs import DeviceSlots, SeededStates, Starts
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig
from es_flipout.run.trainer import Trainer
from scripts.profile_loop import costs

PARTS = ("draw", "starts", "first step and recording", "physics", "between steps", "update")


class Clock:
    """Seconds by part, the device idle before and after each."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._on_gpu = device.type == "cuda"

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self._now() - start

        return run

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def generation(trainer: Trainer, evaluator: OnDeviceEvaluator, clock: Clock) -> int:
    """Runs a generation, timed; returns its live env steps."""
    config, es, engine = trainer.config, trainer.es, evaluator.env.engine
    population = clock.timed("draw", es.ask)()
    seeds = reset_seeds(
        es.population_size, config.rollout.episodes, seed=config.seed, generation=es.generation
    )
    recorded, advance = OnDeviceEvaluator._recorded, engine.advance
    compute, draw = Starts.compute, SeededStates.draw
    between, first = DeviceSlots.between_steps, [True]

    def between_or_first(slots: DeviceSlots) -> None:
        part = "first step and recording" if first.pop() else "between steps"
        first.append(False)
        clock.timed(part, between)(slots)

    def recorded_and_timed(evaluator: OnDeviceEvaluator, slots: DeviceSlots) -> Callable[[], None]:
        DeviceSlots.between_steps = between
        replay = clock.timed("first step and recording", recorded)(evaluator, slots)
        return clock.timed("between steps", replay)

    Starts.compute, SeededStates.draw = clock.timed("starts", compute), clock.timed("starts", draw)
    engine.advance = clock.timed("physics", advance)
    OnDeviceEvaluator._recorded, DeviceSlots.between_steps = recorded_and_timed, between_or_first
    try:
        evaluation = evaluator.evaluate(population, seeds)
    finally:
        Starts.compute, SeededStates.draw, engine.advance = compute, draw, advance
        OnDeviceEvaluator._recorded, DeviceSlots.between_steps = recorded, between
    clock.timed("update", es.tell)(evaluation.fitness)
    return evaluation.env_steps


def kernels(trainer: Trainer, evaluator: OnDeviceEvaluator, count: int) -> list[dict[str, Any]]:
    """Returns the GPU kernels that took most of a generation's time, with their share of it."""
    population = trainer.es.ask()
    seeds = reset_seeds(trainer.es.population_size, seed=trainer.config.seed)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        evaluator.evaluate(population, seeds, episode_limit=20)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) or 1.0
    return [
        {"name": event.key, "calls": event.count, "share": event.self_device_time_total / total}
        for event in events[:count]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Humanoid-v5")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-slots", type=int, default=8192)
    parser.add_argument("--population-size", type=int, help="default: 4 x slots")
    parser.add_argument("--max-episode-steps", type=int, default=100)
    parser.add_argument("--hidden-sizes", type=int, nargs="*", default=[256, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="also name the N dearest")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_mujoco()
    config = Config(
        env=EnvConfig(
            arguments.env,
            {"max_episode_steps": arguments.max_episode_steps},
            arguments.num_envs,
            engine="warp",
        ),
        policy=PolicyConfig(hidden_sizes=arguments.hidden_sizes),
        es=ESConfig(population_size=arguments.population_size or 4 * arguments.num_envs),
        evaluation=EvaluationConfig(interval=0),
        device=arguments.device,
    )
    with closing(Trainer(config)) as trainer:
        evaluator = trainer.evaluator
        assert isinstance(evaluator, OnDeviceEvaluator)
        generation(trainer, evaluator, Clock(evaluator.env.device))  # compiles
        rounds = []
        for _ in range(arguments.rounds):
            clock = Clock(evaluator.env.device)
            steps = generation(trainer, evaluator, clock)
            rounds.append({**{part: clock.seconds[part] for part in PARTS}, "env_steps": steps})
        dearest = kernels(trainer, evaluator, arguments.kernels) if arguments.kernels else []
    print(f"{arguments.env}, {arguments.num_envs:,} slots: microseconds a live env step, share of all")
    for part, (cost, share) in costs(rounds, PARTS).items():
        print(f"  {part:26} {cost:10.2f} {share:7.1%}")
    for kernel in dearest:
        print(f"  {kernel['share']:6.1%} {kernel['calls']:8} x {kernel['name'][:90]}")
    if arguments.json:
        document = {
            "command": shlex.join(["python", "-m", "scripts.profile_device", *sys.argv[1:]]),
            "machine": describe_machine(arguments.device),
            "seed": config.seed,
            "rounds": rounds,
            "kernels": dearest,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
