"""EvoTorch: what its two problems have in common, PGPE with ray actors.

`manual_seed` is never called, because several actors would then draw the same numbers; nothing is seeded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported

import ray
import torch
from evotorch.algorithms import PGPE
from evotorch.neuroevolution import GymNE, VecGymNE
from torch import nn
from torch.nn.utils import parameters_to_vector

from benchmarks.peers.contestant import (
    LEARNING_RATE,
    SIGMA,
    Job,
    Measurement,
    cores,
    time_generations,
)
from benchmarks.peers.torch_policy import MLP

PACKAGES = ["evotorch", "ray", "torch", "gymnasium", "mujoco", "numpy"]


@contextmanager
def ray_cluster(processes: int) -> Iterator[None]:
    """Starts ray for so many actors, and ends it."""
    ray.init(
        num_cpus=max(processes, cores()),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2**29,
    )
    try:
        yield
    finally:
        ray.shutdown()


def measure_problem(
    job: Job, settings: Mapping[str, Any], make_problem: Callable[[nn.Module], GymNE | VecGymNE]
) -> Measurement:
    """Measures PGPE on the problem that `make_problem` makes for a network."""
    torch.set_num_threads(1)
    with ray_cluster(settings["actors"]):
        network = MLP(job.task)
        problem = make_problem(network)
        searcher = PGPE(
            problem,
            popsize=job.population_size,
            center_learning_rate=LEARNING_RATE,
            stdev_learning_rate=0.0,
            stdev_init=SIGMA,
            optimizer="adam",
            ranking_method="centered",
            center_init=parameters_to_vector(network.parameters()).detach(),
            distributed=settings["distributed"],
        )

        def run_generation() -> tuple[int, int]:
            before = problem.interaction_count, problem.episode_count
            searcher.step()
            return problem.interaction_count - before[0], problem.episode_count - before[1]

        measurement = time_generations(run_generation, job.seconds, settings)
        problem.kill_actors()
        return measurement
