"""Where the time of a generation on engine warp goes: physics, what is between its steps, and the rest.

Each part is timed with the device idle before and after it, which costs the overlap of host and device: the
shares are right, the sum is more than a generation takes. --kernels also names the GPU's kernels, from one
more generation under torch's profiler.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.speed.loop import LIVE_STEPS, SECONDS, WHOLE
from benchmarks.speed.timing import available_device, synchronize, turns
from es_flipout.cli.results import Results
from es_flipout.rollout import DevicePlayer, Episodes, reset_seeds
from es_flipout.rollout.device_loop import DeviceLoop, SeededStates, Starts
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig
from es_flipout.run.trainer import Trainer

PARTS = ("draw", "starts", "first step and recording", "physics", "between steps", "update")
"""Contestants, as in `loop`."""
DEFAULTS = {"rounds": 3, "threads": 1}


class Clock:
    """Seconds by part, the device idle before and after each."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self._now() - start

        return run

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def generation(trainer: Trainer, player: DevicePlayer, clock: Clock) -> int:
    """Runs a generation, timed; returns its live env steps."""
    config, es, engine = trainer.config, trainer.es, player.env.engine
    population = clock.timed("draw", es.ask)()
    seeds = reset_seeds(
        es.population_size, config.rollout.episodes, seed=config.seed, generation=es.generation
    )
    recorded, advance = DevicePlayer._recorded, engine.advance
    compute, draw = Starts.compute, SeededStates.draw
    between, first = DeviceLoop.between_steps, [True]

    def between_or_first(loop: DeviceLoop) -> None:
        part = "first step and recording" if first.pop() else "between steps"
        first.append(False)
        clock.timed(part, between)(loop)

    def recorded_and_timed(player: DevicePlayer, loop: DeviceLoop) -> Callable[[], None]:
        DeviceLoop.between_steps = between
        replay = clock.timed("first step and recording", recorded)(player, loop)
        return clock.timed("between steps", replay)

    Starts.compute, SeededStates.draw = clock.timed("starts", compute), clock.timed("starts", draw)
    engine.advance = clock.timed("physics", advance)
    DevicePlayer._recorded, DeviceLoop.between_steps = recorded_and_timed, between_or_first
    try:
        episodes = player.play(population, Episodes.of_population(seeds))
    finally:
        Starts.compute, SeededStates.draw, engine.advance = compute, draw, advance
        DevicePlayer._recorded, DeviceLoop.between_steps = recorded, between
    clock.timed("update", es.tell)(episodes.fitness)
    return episodes.env_steps


def kernels(trainer: Trainer, player: DevicePlayer, count: int) -> list[dict[str, Any]]:
    """Returns the GPU kernels that took most of a generation's time, with their share of it."""
    population = trainer.es.ask()
    seeds = reset_seeds(trainer.es.population_size, seed=trainer.config.seed)
    # There is one cycle, so accumulating changes nothing; torch 2.11 warns without it.
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        player.play(population, Episodes.of_population(seeds, limit=20))
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) or 1.0
    return [
        {"name": event.key, "calls": event.count, "share": event.self_device_time_total / total}
        for event in events[:count]
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--env", default="Humanoid-v5")
    option("--device", type=available_device, default="cuda")
    option("--num-envs", type=int, default=8192)
    option("--population-size", type=int, help="default: 4 x num-envs")
    option("--max-episode-steps", type=int, default=100)
    option("--hidden-sizes", type=int, nargs="*", default=[256, 256])
    option("--kernels", type=int, default=0, metavar="N", help="also name the N that take longest")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Profiles a generation in every round."""
    limit, num_envs = {"max_episode_steps": options.max_episode_steps}, options.num_envs
    config = Config(
        env=EnvConfig(options.env, limit, num_envs, engine="warp"),
        policy=PolicyConfig(hidden_sizes=options.hidden_sizes),
        es=ESConfig(population_size=options.population_size or 4 * num_envs),
        evaluation=EvaluationConfig(interval=0),
        seed=options.seed,
        device=str(options.device),
    )
    with closing(Trainer(config)) as trainer:
        player = trainer.player
        assert isinstance(player, DevicePlayer)
        generation(trainer, player, Clock(options.device))  # compiles
        for index, name in turns([WHOLE], options.rounds):
            clock = Clock(options.device)
            results.add(index, name, {LIVE_STEPS: generation(trainer, player, clock)})
            for part in PARTS:
                results.add(index, part, {SECONDS: clock.seconds[part]})
        found = kernels(trainer, player, options.kernels) if options.kernels else []
    results.settings["kernels"] = found
