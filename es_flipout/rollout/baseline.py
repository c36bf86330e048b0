"""CPU-parallel evolution strategies: workers, each with one environment, that play one member at a time.

As Salimans, Ho, Chen, Sidor and Sutskever (2017, arXiv 1703.03864) run them, on the cores of one machine: a
worker rebuilds a member's weights from the seed of the noise, plays its episodes, and goes on to the next. It
plays in any single environment; native tasks have a faster rival, `WorkerPlayer` with one env per worker. It
and vectorized players check each other: the same population with the same reset seeds gives the same returns,
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.perturbations import copy_module
from es_flipout.population import Population
from es_flipout.processes import available_cores
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.shares import Shares
from es_flipout.rollout.single_env import Rollout
from es_flipout.rollout.worker_main import Inbox, WorkerLoop
from es_flipout.rollout.workers import WorkerPlayer


class BaselinePlayer(WorkerPlayer):
    """Plays episodes in worker processes, one member at a time in each."""

    def __init__(
        self, policy: nn.Module, make_rollout: Callable[[], Rollout], *, num_workers: int | None = None
    ) -> None:
        """Starts the workers.

        Args:
            policy: see `WorkerPlayer`.
            make_rollout: called once in every worker, for example
                `lambda: GymnasiumRollout(lambda: gymnasium.make("Hopper-v5"))`; pickled by cloudpickle.
            num_workers: how many processes; one for every available core if None.

        Raises:
            PlayError: as `WorkerPlayer` does.
            ValueError: as `WorkerPlayer` does.
        """
        count = available_cores() if num_workers is None else num_workers
        super().__init__(policy, partial(MembersInWorker, make_rollout), count)

    @override
    def _shares(self, episodes: Episodes, claims: Claims) -> Shares:
        return Shares(episodes, claims, self.num_workers, by_member=True)


class MembersInWorker(WorkerLoop):
    """Plays one member after the other in a worker."""

    num_envs = 1

    def __init__(self, make_rollout: Callable[[], Rollout]) -> None:
        self._rollout = make_rollout()
        self.observation_size = self._rollout.observation_size
        self._member = _Member()

    @override
    def play(self, population: Population, inbox: Inbox) -> None:
        self._member.follow(population)
        while (share := inbox.take(wait=True)) is not None:
            inbox.ask(0)
            share.observation_size = self.observation_size
            member = -1
            for row, wanted in enumerate(share.member.tolist()):
                if wanted != member:
                    policy, member = self._member.become(wanted), wanted
                with torch.inference_mode():
                    self._rollout.play(policy, share, row)
            share.spent_steps = share.env_steps
            inbox.put(share)
            inbox.ask(1)

    @override
    def close(self) -> None:
        self._rollout.close()


class _Member:
    """A module that becomes one member after the other."""

    def __init__(self) -> None:
        self._module: nn.Module | None = None

    def follow(self, population: Population) -> None:
        """Takes over everything that members of a population share."""
        policy, self._population = population.policy, population
        if self._module is None:
            self._module = copy_module(policy)
        else:
            self._module.load_state_dict(policy.state_dict())
        self._center = [policy.get_parameter(name).data for name in population.trained]
        self._values = [self._module.get_parameter(name).data for name in population.trained]
        self._direction, self._orientation = -1, 1
        self._noise: list[Tensor] = []

    @torch.no_grad()
    def become(self, member: int) -> nn.Module:
        """Returns the module, with the weights of a member: center + sigma noise."""
        population = self._population
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
