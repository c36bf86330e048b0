"""EvoTorch: PGPE on GymNE, which runs one episode after the other in each ray actor."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
from evotorch.neuroevolution import GymNE
from torch import nn

from benchmarks.peers.contestant import MAX_EPISODE_STEPS, Job, Measurement, cores, main
from benchmarks.peers.evotorch_common import PACKAGES, measure_problem

BEST = {"actors": cores(), "subbatch_size": None, "unwrapped": True, "distributed": False}


def make_env(task: str, unwrapped: bool, **kwargs: Any) -> gym.Env[Any, Any]:
    """Makes an environment; without its wrappers, GymNE itself counts the steps."""
    env = gym.make(task, disable_env_checker=True, max_episode_steps=MAX_EPISODE_STEPS, **kwargs)
    return env.unwrapped if unwrapped else env


def measure(job: Job) -> Measurement:
    """Measures GymNE of EvoTorch."""
    settings = job.settings(BEST)

    def make_problem(network: nn.Module) -> GymNE:
        return GymNE(
            partial(make_env, job.task, settings["unwrapped"]),
            network,
            observation_normalization=True,
            episode_length=MAX_EPISODE_STEPS,
            num_actors=settings["actors"],
            subbatch_size=settings["subbatch_size"],
        )

    return measure_problem(job, settings, make_problem)


if __name__ == "__main__":
    main(measure, PACKAGES)
