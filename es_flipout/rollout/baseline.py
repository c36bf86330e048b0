"""CPU-parallel evolution strategies: worker processes, each with one environment and one member at a time.

As Salimans, Ho, Chen, Sidor and Sutskever (2017, arXiv 1703.03864) run them, on the cores of one machine: a
worker rebuilds a member's weights from the seed of the noise, plays its episodes, and goes on to the next. It
is the baseline of the vectorized evaluator, and each checks the other: the same population with the same
reset seeds gives the same returns, to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from es_flipout.population import Population
from es_flipout.processes import available_cores
from es_flipout.rollout.single_env import Rollout
from es_flipout.rollout.worker_main import Answer, Chunk
from es_flipout.rollout.workers import WorkerPool


class ProcessPoolEvaluator(WorkerPool):
    """Evaluates populations of one policy in worker processes, one member at a time in each."""

    def __init__(
        self, policy: nn.Module, make_rollout: Callable[[], Rollout], *, num_workers: int | None = None
    ) -> None:
        """Starts the workers.

        Args:
            policy: the policy whose populations are to be evaluated, on the CPU. Workers get a copy; of later
                changes they see those of parameters and buffers.
            make_rollout: called once in every worker, for example
                `lambda: GymnasiumRollout(lambda: gymnasium.make("Hopper-v5"))`; pickled by cloudpickle.
            num_workers: how many processes; one for every available core if None.

        Raises:
            ValueError: if the policy cannot be sent to processes (its state is not all tensors on the CPU, or
                it cannot be pickled), or there is to be no worker.
            WorkerError: if a worker cannot start; the message says why.
        """
        make_player = partial(_OneByOne, make_rollout)
        count = available_cores() if num_workers is None else num_workers
        super().__init__(policy, make_player, count, guided=True)


class _Member:
    """A module that becomes one member after the other."""

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._population: Population | None = None
        self._direction, self._orientation = -1, 1
        self._noise: list[Tensor] = []

    @torch.no_grad()
    def become(self, population: Population, member: int) -> nn.Module:
        """Returns the module, with the weights of a member: center + sigma noise."""
        if population is not self._population or self._module is None:
            self._follow(population)
        noise = population.noise
        direction, orientation = (int(each) for each in noise.directions(torch.tensor([member])))
        if direction != self._direction:  # the other member of an antithetic pair has the same, negated
            dense = noise.member(member)
            self._noise = [dense[name] for name in population.trained]
            self._direction, self._orientation = direction, orientation
        scale = population.sigma * orientation * self._orientation
        for value, center, noise_of_value in zip(self._values, self._center, self._noise, strict=True):
            torch.add(center, noise_of_value, alpha=scale, out=value)
        assert self._module is not None
        return self._module

    def _follow(self, population: Population) -> None:
        """Takes over everything that members of a population share."""
        policy, self._population = population.policy, population
        if self._module is None:
            self._module = copy.deepcopy(policy)
        else:
            self._module.load_state_dict(policy.state_dict())
        self._center = [policy.get_parameter(name).data for name in population.trained]
        self._values = [self._module.get_parameter(name).data for name in population.trained]
        self._direction = -1


class _OneByOne:
    """Plays members one after the other."""

    def __init__(self, make_rollout: Callable[[], Rollout]) -> None:
        self._rollout = make_rollout()
        self.observation_size = self._rollout.observation_size
        self._member = _Member()

    def play(self, population: Population, chunk: Chunk) -> Answer:
        """See `Player`."""
        answer = Answer.of(chunk.seeds.size, self.observation_size)
        index = 0
        for member, seeds in zip(chunk.members, chunk.seeds.tolist(), strict=True):
            policy = self._member.become(population, member)
            with torch.inference_mode():
                for seed in seeds:
                    episode = self._rollout(policy, seed, chunk.episode_limit)
                    answer.returns[index], answer.lengths[index] = episode.total_reward, episode.length
                    if episode.failure is not None:
                        answer.failures[index] = episode.failure
                    elif answer.moments is not None:
                        if episode.moments is None:
                            raise ValueError("a rollout with an observation_size must return moments")
                        answer.moments[:, index] = episode.moments
                    index += 1
        answer.slot_steps = int(answer.lengths.sum())
        return answer

    def close(self) -> None:
        """Closes the rollout."""
        self._rollout.close()
