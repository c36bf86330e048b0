"""Where the time of a training generation goes, on one core.

python -m scripts.profile_loop --env Humanoid-v5 --population-size 128 --json profile.json

One thread plays all slots, as each worker process of es-train does with its share. Its CPU time is split into
physics (MuJoCo alone, replayed), the environment around it (observation, reward, termination, resets),
the policy, slots (statistics, results, refills), noise and update, and report and checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from es_flipout.bench.machine import describe_machine
from es_flipout.bench.replay import PhysicsCalls
from es_flipout.bench.training import training
from es_flipout.cli.process import silence_mujoco
from es_flipout.rollout.tiles import Tile
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig

PARTS = ("physics", "environment", "policy", "slots", "noise and update", "report and checkpoint")


def costs(rounds: Sequence[Mapping[str, float]], parts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns the microseconds a live env step of each part, and its share of all: medians over rounds."""

    def of(part: str) -> tuple[float, float]:
        shares = (seconds[part] / sum(map(seconds.__getitem__, parts)) for seconds in rounds)
        each = (1e6 * seconds[part] / seconds["env_steps"] for seconds in rounds)
        return statistics.median(each), statistics.median(shares)

    return {part: of(part) for part in parts}


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


def profile(config: Config, generations: int) -> dict[str, float]:
    """Returns CPU seconds of each part, over so many generations, and the live env steps in them."""
    clock = Clock()
    with training(config) as (trainer, train_one):
        train_one()  # warms up
        (env,) = trainer.evaluator.envs  # type: ignore[attr-defined]
        calls = PhysicsCalls.record(env.engine)
        steps = trainer.env_steps
        methods = [
            (Tile, "run", "slots"),
            (Tile, "_act", "policy"),
            (env, "step", "environment"),
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
        return {**{part: clock.seconds[part] for part in PARTS}, "env_steps": trainer.env_steps - steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Humanoid-v5", help="a native task")
    parser.add_argument("--population-size", type=int, default=128, help="members, each with a slot")
    parser.add_argument("--max-episode-steps", type=int, default=200)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_mujoco()
    size = arguments.population_size
    config = Config(
        device="cpu",
        env=EnvConfig(arguments.env, {"max_episode_steps": arguments.max_episode_steps}, num_envs=size),
        policy=PolicyConfig(hidden_sizes=[64, 64]),
        es=ESConfig(population_size=size),
        evaluation=EvaluationConfig(interval=0),
        threads=1,
    )
    rounds = [profile(config, arguments.generations) for _ in range(arguments.rounds)]
    print(
        f"{arguments.env}, {size} members and slots, one core: CPU microseconds a live env step, share of all"
    )
    for part, (cost, share) in costs(rounds, PARTS).items():
        print(f"  {part:22} {cost:8.1f} {share:7.1%}")
    if arguments.json:
        document = {
            "command": shlex.join(["python", "-m", "scripts.profile_loop", *sys.argv[1:]]),
            "machine": describe_machine(),
            "seed": config.seed,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
