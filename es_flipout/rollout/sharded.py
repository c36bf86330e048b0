"""The vectorized evaluation on many cores: every worker process runs its share of the members, in slots.

Python runs one thread at a time, and a step of a population is some hundred calls; one process would leave
cores idle while it makes them. Worker processes, each with a vector environment of its own and the policy in
one forward for all of its slots, never wait for each other. A member's return does not depend on the slots it
shares a process with, so the number of processes changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.population import Population
from es_flipout.rollout.tiles import Tile, observation_size
from es_flipout.rollout.worker_main import Answer, Chunk
from es_flipout.rollout.workers import WorkerPool


class ShardedEvaluator(WorkerPool):
    """Evaluates populations of one policy in worker processes, each of which has slots of its own."""

    def __init__(self, policy: nn.Module, make_env: Callable[[], TorchVectorEnv], num_workers: int) -> None:
        """Starts the workers.

        Args:
            policy: the policy whose populations are to be evaluated, on the CPU. Workers get a copy; of later
                changes they see those of parameters and buffers.
            make_env: makes the environment of one worker, which steps it on its own; pickled by cloudpickle.
            num_workers: how many processes.

        Raises:
            ValueError: if the policy cannot be sent to processes (its state is not all tensors on the CPU, or
                it cannot be pickled), or there is to be no worker.
            WorkerError: if a worker cannot start; the message says why.
        """
        super().__init__(policy, partial(_Slots, make_env), num_workers, guided=False)


class _Slots:
    """Plays members side by side."""

    def __init__(self, make_env: Callable[[], TorchVectorEnv]) -> None:
        self._env = make_env()
        self.observation_size = observation_size(self._env)

    def play(self, population: Population, chunk: Chunk) -> Answer:
        """See `Player`."""
        answer = Answer.of(chunk.seeds.size, self.observation_size)
        tile = Tile(
            self._env,
            population,
            _ChunkResults(chunk, answer, self.observation_size),
            np.arange(chunk.seeds.size),
            chunk.episode_limit,
        )
        tile.run()
        answer.slot_steps = tile.slot_steps
        return answer

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class _ChunkResults:
    """What came of the episodes of a chunk; see `EpisodeResults`."""

    def __init__(self, chunk: Chunk, answer: Answer, observation_size: int | None) -> None:
        self.seeds = chunk.seeds
        self.observation_size = observation_size
        self._members = torch.tensor(chunk.members)
        self._answer = answer

    def members(self, episodes: NDArray[np.int64]) -> Tensor:
        """See `EpisodeResults`."""
        return self._members[torch.from_numpy(episodes // self.seeds.shape[1])]

    def conclude(
        self,
        episodes: NDArray[np.int64],
        returns: NDArray[np.float64],
        lengths: NDArray[np.int64],
        moments: Tensor | None,
        failures: Mapping[int, str],
    ) -> None:
        """See `EpisodeResults`."""
        answer = self._answer
        answer.returns[episodes], answer.lengths[episodes] = returns, lengths
        if answer.moments is not None and moments is not None:
            answer.moments[:, episodes] = moments.numpy()
        answer.failures |= {int(episodes[index]): failure for index, failure in failures.items()}
