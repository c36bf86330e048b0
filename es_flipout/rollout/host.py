"""Plays episodes from the host, in any vector environment: each env has its own member, one forward for all.

Given several environments, each runs on a thread of its own with its share of the episodes, and on a CUDA
stream of its own: while one is in its physics, the policy runs for another. Which episode runs where depends
on nothing that differs from run to run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from typing_extensions import override

from es_flipout.envs.foreign import torch_vector_env
from es_flipout.envs.transfer import current_stream, new_stream, working_on
from es_flipout.population import Population
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.make_loop import loop_of_members
from es_flipout.rollout.mlp_rows import rows_are_independent
from es_flipout.rollout.moments import Ints
from es_flipout.rollout.player import (
    Player,
    PlayStoppedError,
    check_members,
    company_size,
    never,
    nothing,
)
from es_flipout.rollout.step_loop import StepLoop, observation_size


class HostPlayer(Player):
    """Plays episodes in the envs of one or several vector environments.

    Environments that reset themselves (see `ForeignVectorEnv`) heed only the first reset seed.
    """

    def __init__(
        self, *envs: VectorEnv[Any, Any, Any], concurrent: bool = True, in_companies: bool = False
    ) -> None:
        """Takes the environments.

        Args:
            envs: one vector environment, or several of the same task. Any that is not a `TorchVectorEnv`, and
                has none inside, is made one by `ForeignVectorEnv`, whatever its arrays and autoreset mode.
            concurrent: whether several run at the same time, or one after the other.
            in_companies: if it matters who plays beside whom, whether companies are played one after the
                other, as several players of a table do it. It gives the same bits, and takes longer.

        Raises:
            TypeError: if one is no vector environment.
            ValueError: if there is none, or observations are not a Box.
        """
        if not envs or len({id(env) for env in envs}) < len(envs):
            raise ValueError("a player needs one environment, or several different ones")
        self.envs = [torch_vector_env(env) for env in envs]
        self._observation_size = observation_size(self.envs[0])
        self._concurrent, self._in_companies = concurrent and len(envs) > 1, in_companies
        self._streams = [new_stream(env.device) for env in self.envs]

    @override
    def play(
        self,
        population: Population,
        episodes: Episodes,
        *,
        claims: Claims | None = None,
        should_stop: Callable[[], bool] = never,
        meanwhile: Callable[[], None] = nothing,
    ) -> Episodes:
        check_members(population, episodes)
        meanwhile()
        episodes.observation_size = self._observation_size
        in_companies = self._in_companies or claims is not None
        claims = claims or Claims(episodes)
        size = len(episodes)
        if not self.needs_fixed_share(population):
            if len(self.envs) == 1 and rows_are_independent(population.policy):
                self._play_as_envs_get_free(population, episodes, claims, should_stop)
            elif in_companies:
                size = company_size(sum(env.num_envs for env in self.envs), episodes)
        while len(rows := claims.claim(size)):
            self._play_together(population, episodes, rows, should_stop)
        return episodes

    def _play_as_envs_get_free(
        self, population: Population, episodes: Episodes, claims: Claims, should_stop: Callable[[], bool]
    ) -> None:
        """Plays what there is to claim, in the envs of the only environment."""
        loop = loop_of_members(self.envs[0], population)
        while True:
            while (lacking := loop.num_lacking) and claims.num_waiting:
                loop.add(episodes, claims.claim(max(lacking, self._num_ahead(claims))))
            if not loop.is_playing:
                break
            if should_stop():
                raise PlayStoppedError
            loop.step()
        episodes.spent_steps += loop.spent_steps

    def _num_ahead(self, claims: Claims) -> int:
        """Returns how many episodes may be claimed before there is an env for them."""
        if claims.is_alone:
            return claims.num_waiting
        return 0 if claims.is_scarce(self.envs[0].num_envs) else claims.fair_share()

    def _play_together(
        self, population: Population, episodes: Episodes, rows: Ints, should_stop: Callable[[], bool]
    ) -> None:
        """Plays rows of a table with nobody beside them."""
        lock = threading.Lock()
        loops = [loop_of_members(env, population, lock=lock) for env in self.envs]
        for index, loop in enumerate(loops):
            loop.add(episodes, rows[index :: len(loops)])
        if self._concurrent:
            _run_concurrently(loops, self._streams, should_stop)
        else:
            for loop in loops:
                loop.run(should_stop)
        episodes.spent_steps += sum(loop.spent_steps for loop in loops)

    @override
    def close(self) -> None:
        for env in self.envs:
            env.close()


def _run_concurrently(
    loops: Sequence[StepLoop], streams: Sequence[torch.cuda.Stream | None], should_stop: Callable[[], bool]
) -> None:
    """Runs each loop on a thread and a stream of its own; if one, or this thread, raises, all end."""
    gave_up = threading.Event()
    before = current_stream(loops[0].env.device)

    def run(loop: StepLoop, stream: torch.cuda.Stream | None) -> None:
        try:
            with working_on(stream, after=before):
                loop.run(lambda: should_stop() or gave_up.is_set())
        except BaseException:
            gave_up.set()
            raise

    with ThreadPoolExecutor(len(loops), "envs") as threads:
        futures = [threads.submit(run, *each) for each in zip(loops, streams, strict=True)]
        try:
            errors = [error for error in (future.exception() for future in futures) if error is not None]
        finally:
            gave_up.set()
    for error in sorted(errors, key=lambda error: isinstance(error, PlayStoppedError)):
        raise error
