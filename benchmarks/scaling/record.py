"""Records how long episodes of Humanoid's populations are: python -m benchmarks.scaling.record.

Three populations, the latter two of policies in `benchmarks/results`: that of a policy without training, that
of `humanoid_half_trained`, which keeps its balance for a while, and that of `humanoid_long_run`, which mostly
stays up.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.scaling.lengths import RECORDED, Ints
from es_flipout.cli.arguments import load_config
from es_flipout.cli.option_types import COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.rollout import Episodes
from es_flipout.run.config import Config
from es_flipout.run.machine import describe_machine
from es_flipout.run.play_generation import seeds_of
from es_flipout.run.schedules import EpisodeLimitConfig
from es_flipout.run.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
LONG_RUN = "benchmarks/results/humanoid_long_run"
HALF_TRAINED = "benchmarks/results/humanoid_half_trained"
POPULATIONS: dict[str, tuple[str, str | None]] = {
    "untrained": (f"{HALF_TRAINED}/config.yaml", None),
    "half_trained": (f"{HALF_TRAINED}/config.yaml", f"{HALF_TRAINED}/checkpoints/last.pt"),
    "upright": (f"{LONG_RUN}/config.yaml", f"{LONG_RUN}/checkpoints/last.pt"),
}
"""Configuration and policy of each, relative to the checkout."""


def main(words: Sequence[str] | None = None) -> int:
    """Records the lengths and returns the exit status."""
    return run_command("benchmarks.scaling.record", _record, words)


def _record(words: Sequence[str]) -> int:
    parser = UsageParser(prog="benchmarks.scaling.record", description=__doc__, allow_abbrev=False)
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=list(POPULATIONS))
    parser.add_argument("--members", type=COUNT, default=1024, help="of a population, one episode each")
    parser.add_argument("--num-envs", type=COUNT, default=128)
    parser.add_argument("--max-steps", type=COUNT, default=1000, help="of an episode")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=Path, default=RECORDED, metavar="FILE", help="file for the results")
    options = parser.parse_args(words)
    silence_mujoco()
    torch.set_num_threads(1)
    populations = {}
    for name in options.populations:
        path, policy = POPULATIONS[name]
        lengths = np.sort(lengths_of(configured(path, policy, options), options.max_steps))
        print(f"{name}: mean {lengths.mean():.1f}, median {np.median(lengths):g}, max {lengths.max()}")
        settings = {"config": path, "policy": policy, "mean": float(lengths.mean())}
        populations[name] = {**settings, "lengths": lengths.tolist()}
    command = shlex.join(["python", "-m", "benchmarks.scaling.record", *words])
    settings = {"command": command, "members": options.members, "seed": options.seed}
    head = json.dumps({**settings, "machine": describe_machine()}, indent=1).removesuffix("\n}")
    lines = ",\n".join(f'  "{name}": {json.dumps(each)}' for name, each in populations.items())
    options.json.write_text(f'{head},\n "populations": {{\n{lines}\n }}\n}}\n')
    return 0


def configured(path: str, policy: str | None, options: argparse.Namespace) -> Config:
    """Returns the configuration of a population whose episodes have no limit but the environment's."""
    config = load_config(ROOT / path)
    return replace(
        config,
        es=replace(config.es, population_size=options.members),
        env=replace(config.env, num_envs=options.num_envs),
        rollout=replace(config.rollout, episode_limit=EpisodeLimitConfig()),
        init_from=None if policy is None else str(ROOT / policy),
        seed=options.seed,
        device="cpu",
    )


def lengths_of(config: Config, max_steps: int) -> Ints:
    """Plays the first population of a run, and returns the lengths of its episodes."""
    with closing(Trainer(config)) as trainer:
        episodes = Episodes.of_population(seeds_of(config, 0, block=0), limit=max_steps)
        return trainer.player.play(trainer.es.ask(), episodes).lengths


if __name__ == "__main__":
    sys.exit(main())
