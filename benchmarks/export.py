"""How far exported policies are from the policies: actions step by step, and scores.

    python -m benchmarks.export RUN [RUN ...] --out benchmarks/results/export.json

Every run is exported to each format. Actions are compared over 1,000 steps of the official environment, on
the same observations; then the policy and the file each play the same episodes on their own, in which
differences of the last bits grow.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from es_flipout import LoadedPolicy, load_policy
from es_flipout.choices import EXPORT_SUFFIXES
from es_flipout.cli.process import silence_mujoco
from es_flipout.export.check import check, exported_actor
from es_flipout.export.formats import open_exported, write
from es_flipout.export.metadata import metadata
from es_flipout.export.module import ExportedModule
from es_flipout.run.machine import describe_machine


def returns_of(policy: LoadedPolicy, act: Any, episodes: int) -> list[float]:
    """Plays episodes of seeds 0, 1, ...; `act` takes an observation and whether it is an episode's first."""
    env, returns = policy.make_env(), []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        total, start, done = 0.0, True, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(act(observation, start))
            total, start, done = total + float(reward), False, bool(terminated or truncated)
        returns.append(total)
    env.close()
    return returns


def policy_actor(policy: LoadedPolicy) -> Any:
    state: Any = None

    def act(observation: Any, start: bool) -> Any:
        nonlocal state
        action, state = policy.predict(observation, None if start else state)
        return action

    return act


def compare(folder: Path, steps: int, episodes: int) -> list[dict[str, Any]]:
    """Returns what is found for each format of a run."""
    policy = load_policy(folder)
    module = ExportedModule(policy)
    own = np.array(returns_of(policy, policy_actor(policy), episodes))
    rows = []
    for format, suffix in EXPORT_SUFFIXES.items():
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / f"policy{suffix}"
            write(module, metadata(policy, module), format, path)
            run, size = open_exported(format, path), path.stat().st_size
            result = check(policy, module, run, steps)
            other = np.array(returns_of(policy, exported_actor(module, run), episodes))
        row = {
            "run": folder.name,
            "env": policy.env_id,
            "policy": policy.config.policy.kind,
            "format": format,
            "bytes": size,
            "steps": result.steps,
            "largest_difference": result.largest,
            "differing_actions": result.differing,
            "score": own.mean(),
            "exported_score": other.mean(),
            "largest_difference_of_a_return": np.abs(own - other).max(),
        }
        print(json.dumps(row))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    silence_mujoco()
    rows = [row for run in parsed.runs for row in compare(run, parsed.steps, parsed.episodes)]
    if parsed.out is not None:
        content = {"machine": describe_machine(), "episodes": parsed.episodes, "rows": rows}
        parsed.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
