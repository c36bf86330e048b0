"""EvoTorch: PGPE on VecGymNE, whose ray actors each step a vector environment for their members.

Tried on HalfCheetah and Humanoid, population 64, on a machine that was not quiet: an environment that neither
resets nor copies what has ended 17,600 and 3,480 env steps/s, VecGymNE's own vector environment 16,300 and
3,090. `distributed` (each actor draws members of its own): 20,200 while the machine was 1.6 times as fast.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from evotorch.neuroevolution import VecGymNE
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import nn

from benchmarks.peers.contestant import MAX_EPISODE_STEPS, Job, Measurement, cores, main
from benchmarks.peers.evotorch_common import PACKAGES, measure_problem
from benchmarks.peers.pool import Floats, make_envs

BEST = {
    "actors": cores(),
    "subbatch_size": None,
    "max_num_envs": None,
    "vector_env": "live",
    "distributed": False,
}


class LiveVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments one after the other, none of which is stepped or reset once its episode has ended.

    VecGymNE's own vector environment does so too, but resets what it will not step, and copies more.
    """

    def __init__(self, task: str, num_envs: int) -> None:
        self.num_envs = num_envs
        first = int(np.random.default_rng().integers(2**31))
        self._envs = make_envs(task, range(first, first + num_envs))
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations = np.zeros((num_envs, *self.single_observation_space.shape), np.float32)
        self._rewards = np.zeros(num_envs, np.float32)
        self._live: list[int] = []
        self._steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Floats, dict[str, Any]]:
        """Starts an episode in each environment."""
        for index, env in enumerate(self._envs):
            self._observations[index] = env.reset()[0]
        self._live = list(range(self.num_envs))
        self._steps = 0
        return self._observations, {}

    def step(
        self, actions: Floats
    ) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps those whose episode is running; the others are reported as ended once more."""
        self._steps += 1
        terminated = np.ones(self.num_envs, np.bool_)
        for index in self._live:
            self._observations[index], self._rewards[index], terminated[index], _, _ = self._envs[index].step(
                actions[index]
            )
        self._live = np.flatnonzero(~terminated).tolist()
        truncated = np.full(self.num_envs, self._steps >= MAX_EPISODE_STEPS)
        return self._observations, self._rewards, terminated, truncated, {}


def measure(job: Job) -> Measurement:
    """Measures VecGymNE of EvoTorch."""
    settings = job.settings(BEST)
    live = settings["vector_env"] == "live"

    def make_problem(network: nn.Module) -> VecGymNE:
        return VecGymNE(
            partial(LiveVectorEnv, job.task) if live else job.task,
            network,
            env_config=None
            if live
            else {"max_episode_steps": MAX_EPISODE_STEPS, "disable_env_checker": True},
            observation_normalization=True,
            num_actors=settings["actors"],
            subbatch_size=settings["subbatch_size"],
            max_num_envs=settings["max_num_envs"],
        )

    return measure_problem(job, settings, make_problem)


if __name__ == "__main__":
    main(measure, PACKAGES)
