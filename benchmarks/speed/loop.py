"""Where the time of a training generation goes, on one core.

One thread plays all envs, as each worker process of es-train does with its share. Its CPU time is split into
physics (MuJoCo alone, replayed), the environment around it (observation, reward, termination, resets), the
policy, episodes (statistics, results, refills), noise and update, and report and checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.speed.replay import PhysicsCalls
from benchmarks.speed.timing import turns
from benchmarks.speed.training import training
from es_flipout.cli.results import Results
from es_flipout.rollout.fused_loop import FusedLoop
from es_flipout.rollout.host_loop import HostLoop
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig

PARTS = ("physics", "environment", "policy", "episodes", "noise and update", "report and checkpoint")
"""Contestants, with the metric SECONDS; WHOLE has LIVE_STEPS."""
SECONDS, WHOLE, LIVE_STEPS = "s", "all parts", "env steps"
DEFAULTS = {"rounds": 3, "threads": 1}


class Clock:
    """CPU seconds spent in methods, each call's own: without those of watched methods that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def watching(self, methods: list[tuple[Any, str, str]]) -> Iterator[None]:
        """Replaces methods (owner, name, label) by timed ones for a while."""
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in methods]
        for owner, name, label in methods:
            setattr(owner, name, self._timed(getattr(owner, name), label))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def _timed(self, method: Callable[..., Any], label: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                elapsed = time.process_time() - start
                self.seconds[label] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        return timed


def profile(config: Config, generations: int) -> tuple[dict[str, float], int]:
    """Returns CPU seconds of each part, over so many generations, and the live env steps in them."""
    clock = Clock()
    with training(config) as (trainer, train_one):
        train_one()  # warms up
        (env,) = trainer.player.envs  # type: ignore[attr-defined]
        calls = PhysicsCalls.record(env.engine)
        steps = trainer.env_steps
        methods = [
            (trainer.player, "play", "episodes"),
            (HostLoop, "_act", "policy"),
            (FusedLoop, "_act", "policy"),
            (env, "step", "environment"),
            (env, "advance", "environment"),
            (env, "reset", "environment"),
            (trainer.es, "ask", "noise and update"),
            (trainer.es, "tell", "noise and update"),
            (trainer, "train", "report and checkpoint"),
        ]
        with clock.watching(methods):
            for _ in range(generations):
                train_one()
        start = time.process_time()
        calls.replay(env.task.model, 1)
        physics = time.process_time() - start
        clock.seconds["physics"] = physics
        clock.seconds["environment"] -= physics
        return clock.seconds, trainer.env_steps - steps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--env", default="Humanoid-v5", help="a native task")
    option("--population-size", type=int, default=128, help="members, each with an env")
    option("--max-episode-steps", type=int, default=200)
    option("--generations", type=int, default=3)


def measure(options: argparse.Namespace, results: Results) -> None:
    """Profiles so many generations in every round."""
    size = options.population_size
    config = Config(
        device="cpu",
        env=EnvConfig(options.env, {"max_episode_steps": options.max_episode_steps}, num_envs=size),
        policy=PolicyConfig(hidden_sizes=[64, 64]),
        es=ESConfig(population_size=size),
        evaluation=EvaluationConfig(interval=0),
        seed=options.seed,
        threads=options.threads,
    )
    for index, name in turns([WHOLE], options.rounds):
        seconds, steps = profile(config, options.generations)
        results.add(index, name, {LIVE_STEPS: steps})
        for part in PARTS:
            results.add(index, part, {SECONDS: seconds[part]})
