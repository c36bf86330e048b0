"""How far the native tasks are from Gymnasium's own: the largest difference in anything that a step returns.

python -m benchmarks.parity --seeds 10 --steps 1000 --json parity.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.speed.tables import markdown
from es_flipout.cli.results import Results
from es_flipout.envs import TASKS, make_vec
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.run.machine import describe_machine


def info_error(info: dict[str, Any], rows: np.ndarray, official_infos: list[dict[str, Any]]) -> float:
    """Returns the largest difference in any info entry of some rows; infinite if one side lacks an entry."""
    errors = [0.0]
    for i in rows:
        if info.keys() != official_infos[i].keys():
            return np.inf
        errors += [np.abs(value[i].numpy() - official_infos[i][name]).max() for name, value in info.items()]
    return float(np.max(errors))


def measure(env_id: str, seeds: int, steps: int) -> dict[str, Any]:
    """Steps `seeds` native rows and as many official environments side by side under random actions.

    Row i starts from seed i on both sides; an ended episode is followed by an unseeded reset.
    """
    env = make_vec(env_id, seeds, dtype=torch.float64)
    with deprecations_silenced():
        officials = [gym.make(env_id) for _ in range(seeds)]
    env.action_space.seed(0)
    errors = {"observation": 0.0, "reward": 0.0, "info": 0.0}
    equal = {"terminations": True, "truncations": True}
    ended = np.ones(seeds, bool)
    expected = np.zeros(env.observation_space.shape)
    rewards, terminated, truncated = np.zeros(seeds), np.zeros(seeds, bool), np.zeros(seeds, bool)
    infos: list[dict[str, Any]] = [{} for _ in range(seeds)]
    episodes = 0

    def note(name: str, got: torch.Tensor, official: np.ndarray) -> None:
        # np.maximum, unlike max, keeps a NaN.
        errors[name] = float(np.maximum(errors[name], np.abs(got.numpy() - official).max()))

    for step in range(steps):
        if ended.any():
            first = step == 0
            observations, info = env.reset(seed=0 if first else None, options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                expected[i], infos[i] = officials[i].reset(seed=int(i) if first else None)
            note("observation", observations, expected)
            errors["info"] = max(errors["info"], info_error(info, np.flatnonzero(ended), infos))
        actions = env.action_space.sample()
        observations, got_rewards, got_terminated, got_truncated, info = env.step(torch.from_numpy(actions))
        for i, official in enumerate(officials):
            expected[i], rewards[i], terminated[i], truncated[i], infos[i] = official.step(actions[i])
        note("observation", observations, expected)
        note("reward", got_rewards, rewards)
        errors["info"] = max(errors["info"], info_error(info, np.arange(seeds), infos))
        equal["terminations"] &= np.array_equal(got_terminated.numpy(), terminated)
        equal["truncations"] &= np.array_equal(got_truncated.numpy(), truncated)
        ended = terminated | truncated
        episodes += int(ended.sum())
    env.close()
    return {
        **{f"max_abs_error_{name}": error for name, error in errors.items()},
        **{f"{name}_equal": value for name, value in equal.items()},
        "episodes": episodes,
        "steps": steps * seeds,
        "seeds": seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="S", help="episodes side by side: seeds 0 .. S - 1"
    )
    parser.add_argument("--steps", type=int, default=1000, help="env steps for each seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.parity", *sys.argv[1:]])
    results = Results({"command": command, "machine": describe_machine()})
    for env_id in sorted(TASKS):
        results.add(0, env_id, measure(env_id, arguments.seeds, arguments.steps))
    print(table(results))
    if arguments.json:
        results.write(arguments.json)


def table(results: Results) -> str:
    """Returns the table of docs/playing.md."""
    metrics = results.column("metric")

    def cell(task: str, metric: str) -> str:
        (value,) = results.by_round(task, metric).values()
        if isinstance(value, bool):
            return "yes" if value else "NO"
        return f"{value:.1e}" if isinstance(value, float) else f"{value:,}"

    rows = [[task, *(cell(task, metric) for metric in metrics)] for task in results.column("contestant")]
    return markdown(["task", *(metric.replace("_", " ") for metric in metrics)], rows)


if __name__ == "__main__":
    main()
