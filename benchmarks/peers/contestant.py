"""What the process of every contestant does: one measurement, whose result is written as JSON.

The driver (`run.py`) starts a contestant anew for each measurement, so that nothing of another one is alive
beside it. Here is only what all of them share; this module imports nothing but the standard library, because
the peers run in an environment of their own, and ours in this project's.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_EPISODE_STEPS = 200
HIDDEN = 64
"""Width of both hidden layers, tanh, of every policy."""
SIGMA = 0.05
"""Standard deviation of the perturbations."""
LEARNING_RATE = 1e-4
"""Of Adam where there is one: so small that the policies stay near the initial ones."""


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        task: Gymnasium id.
        population_size: members, each of which has one episode per generation.
        seconds: least duration of what is timed.
        seed: of whatever the library lets be seeded.
        overrides: settings that replace the contestant's best ones.
    """

    task: str
    population_size: int
    seconds: float
    seed: int
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, best: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the contestant's settings: the best ones, and what overrides them.

        Raises:
            ValueError: if there is no such setting.
        """
        if unknown := set(self.overrides) - set(best):
            raise ValueError(f"no such settings: {sorted(unknown)}; there are {sorted(best)}")
        return {**best, **self.overrides}


@dataclass(frozen=True)
class Measurement:
    """What was timed: whole generations, the first one left out.

    Attributes:
        env_steps: live ones: each advanced the running episode of a member.
        episodes: how many there were.
        seconds: duration.
        generations: how many there were.
        settings: of the contestant.
        physics_seconds: what the bare physics of the same steps and resets took, where it was measured.
    """

    env_steps: int
    episodes: int
    seconds: float
    generations: int
    settings: Mapping[str, Any]
    physics_seconds: float | None = None


def time_generations(
    run_generation: Callable[[], tuple[int, int]],
    seconds: float,
    settings: Mapping[str, Any],
    warm_up: int = 1,
) -> Measurement:
    """Runs a generation that does not count, then times whole ones for at least so many seconds.

    Args:
        run_generation: runs a whole generation and returns its live env steps and its episodes.
        seconds: least duration.
        settings: of the contestant.
        warm_up: generations that do not count.
    """
    for _ in range(warm_up):
        run_generation()
    env_steps = episodes = generations = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        steps, ended = run_generation()
        env_steps += steps
        episodes += ended
        generations += 1
    return Measurement(env_steps, episodes, elapsed, generations, settings)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def main(measure: Callable[[Job], Measurement], packages: Sequence[str]) -> None:
    """Runs a contestant as the command line says, and writes its result.

    Args:
        measure: the contestant.
        packages: distributions whose versions belong in the result.
    """
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--population", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON; replaces the best settings")
    parser.add_argument("--result", type=Path, help="file to write the JSON to; printed if not given")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)  # so that what was started is ended
    if args.result is not None:
        end_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(end_with_parent, signal.SIGTERM)
    job = Job(args.task, args.population, args.seconds, args.seed, args.settings)
    result = {
        **asdict(measure(job)),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if args.result is None:
        rate, length = result["env_steps"] / result["seconds"], result["env_steps"] / result["episodes"]
        print(f"{rate:,.0f} live env steps/s, {length:.1f} steps per episode")
        print(json.dumps(result))
    else:
        args.result.write_text(json.dumps(result))


def _exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
