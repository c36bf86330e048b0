"""Scores the policy of a run on engine warp and in the official environment, from the same reset seeds.

python -m benchmarks.compare_engines runs/Humanoid-v5-seed0 --episodes 100 --device cuda --json engines.json

What float32 and another solver change shows in both means, each given with its standard error.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from es_flipout.cli.arguments import load_config
from es_flipout.cli.process import silence_mujoco
from es_flipout.cli.results import Results
from es_flipout.envs import make_vec
from es_flipout.processes import available_cores
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_scorer
from es_flipout.run.config import EnvConfig
from es_flipout.run.machine import describe_machine
from es_flipout.run.run_directory import RunDirectory

RETURN = "return"
"""The metric; its round is the number of the episode."""


@torch.no_grad()
def returns_on_warp(
    policy: nn.Module, config: EnvConfig, episodes: int, seed: int, device: str
) -> list[float]:
    """Returns the return of one episode from each of `episodes` reset seeds, NaN if the physics failed."""
    env = make_vec(
        config.id,
        episodes,
        device=device,
        engine="warp",
        engine_kwargs=config.engine_kwargs,
        info=False,
        **config.kwargs,
    )
    with closing(env):
        observations, _ = env.reset(seed=seed)
        recurrent = RecurrentState(policy, episodes) if is_recurrent(policy) else None
        total = torch.zeros(episodes, dtype=torch.float64, device=device)
        ended = torch.zeros(episodes, dtype=torch.bool, device=device)
        while not ended.all():
            observations = observations.to(next(policy.parameters()))
            actions = recurrent.act(policy, observations, slice(None)) if recurrent else policy(observations)
            observations, rewards, terminated, truncated, info = env.step(actions)
            total += rewards
            if "failed" in info:
                total[torch.from_numpy(info["failed"]).to(device)] = math.nan
            ended = terminated | truncated
    return total.tolist()


def summary(results: Results, engine: str) -> tuple[float, float, int]:
    """Returns the mean return of an engine's episodes, its standard error, and how many have failed."""
    returns = [*results.by_round(engine, RETURN).values()]
    sound = [value for value in returns if not math.isnan(value)]
    error = statistics.stdev(sound) / math.sqrt(len(sound))
    return statistics.fmean(sound), error, len(returns) - len(sound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2_000_000, help="reset seed of the first episode")
    parser.add_argument("--device", default="cuda", help="of engine warp")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_mujoco()
    run = RunDirectory.open(arguments.run)
    config = load_config(run.config)
    processes = min(available_cores(), arguments.episodes)
    scorer = official_scorer(config.env, arguments.episodes, processes=processes)
    policy = make_policy(config.policy, scorer.observation_space, scorer.action_space)
    state = checkpoint.load(run.last)
    checkpoint.load_policy(policy, state, run.last)
    with closing(scorer):
        official = scorer.score(policy, seed=arguments.seed).returns.tolist()
    policy = policy.to(arguments.device)
    warp = returns_on_warp(policy, config.env, arguments.episodes, arguments.seed, arguments.device)
    results = Results(
        {
            "command": shlex.join(["python", "-m", "benchmarks.compare_engines", *sys.argv[1:]]),
            "machine": describe_machine(arguments.device),
            "env": config.env.id,
            "generation": state["generation"],
            "env_steps": state["env_steps"],
        }
    )
    print(f"{config.env.id}, generation {state['generation']}, {arguments.episodes} episodes")
    for engine, returns in (("official environment", official), ("engine warp", warp)):
        for index, value in enumerate(returns):
            results.add(index, engine, {RETURN: value})
        mean, error, failed = summary(results, engine)
        print(f"  {engine:22} {mean:10.1f} +- {error:.1f}  failed {failed}")
    if arguments.json:
        results.write(arguments.json)


if __name__ == "__main__":
    main()
