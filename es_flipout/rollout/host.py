"""Evaluates a population in vector environments: one forward a step, every slot with its own member.

A slot holds one episode of one member. When the episode ends the slot takes the next episode that waits
for its environment, so population size and number of slots are independent.
A member's return does not depend on the slot it ran in, on the number of slots, or on who ran beside it.

Given several environments (tiles of slots), each runs on a thread of its own with its share of the
episodes, and on a CUDA stream of its own: while one is in its physics, the policy runs for another. Who runs
where depends on nothing that differs from run to run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.envs.foreign import ForeignVectorEnv
from es_flipout.envs.transfer import current_stream, new_stream, working_on
from es_flipout.population import Population
from es_flipout.rollout.episodes import Evaluation, EvaluationStoppedError, Results
from es_flipout.rollout.tiles import Tile, observation_size


class VectorizedEvaluator:
    """Runs the episodes of a population in the slots of one or several vector environments."""

    def __init__(self, *envs: VectorEnv[Any, Any, Any], concurrent: bool = True) -> None:
        """Takes the environments.

        Args:
            envs: one vector environment, or several of the same task. Any that is no `TorchVectorEnv` is
                made one by `ForeignVectorEnv`, whatever its arrays and autoreset mode.
            concurrent: whether several run at the same time, or one after the other.

        Raises:
            ValueError: if there is none, or observations are no Box.
        """
        if not envs or len({id(env) for env in envs}) < len(envs):
            raise ValueError("an evaluator needs one environment, or several different ones")
        self.envs = [env if isinstance(env, TorchVectorEnv) else ForeignVectorEnv(env) for env in envs]
        self._observation_size = observation_size(self.envs[0])
        self._concurrent = concurrent and len(envs) > 1
        self._streams = [new_stream(env.device) for env in self.envs]

    def evaluate(
        self,
        population: Population,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]],
        *,
        episode_limit: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Rolls every member out for its episodes.

        Args:
            population: the members.
            reset_seeds: seed of each episode, [P, E], or [P] for one episode a member. Environments that
                reset themselves (see `ForeignVectorEnv`) only heed the first.
            episode_limit: env steps after which an episode is cut off; None for the environment's own limit.
            should_stop: asked before every step, on whatever thread takes it.

        Raises:
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if there are not as many seeds for each member, or a limit is wanted of
                environments that cannot be reset before an episode has ended.
        """
        results = Results.of(reset_seeds, population.size, self._observation_size)
        if episode_limit is not None and not all(env.restarts_anytime for env in self.envs):
            raise ValueError("an episode limit needs environments that can be reset at any time")
        shares = [np.arange(index, results.seeds.size, len(self.envs)) for index in range(len(self.envs))]
        tiles = [
            Tile(env, population, results, share, episode_limit)
            for env, share in zip(self.envs, shares, strict=True)
        ]
        if self._concurrent:
            _run_concurrently(tiles, self._streams, should_stop)
        else:
            for tile in tiles:
                tile.run(should_stop)
        return results.evaluation(sum(tile.slot_steps for tile in tiles))

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()


def _run_concurrently(
    tiles: Sequence[Tile], streams: Sequence[torch.cuda.Stream | None], should_stop: Callable[[], bool]
) -> None:
    """Runs each tile on a thread and a stream of its own; once one, or this thread, has raised, all end."""
    gave_up = threading.Event()
    before = current_stream(tiles[0].env.device)

    def run(tile: Tile, stream: torch.cuda.Stream | None) -> None:
        try:
            with working_on(stream, after=before):
                tile.run(lambda: should_stop() or gave_up.is_set())
        except BaseException:
            gave_up.set()
            raise

    with ThreadPoolExecutor(len(tiles), "tile") as threads:
        futures = [threads.submit(run, *each) for each in zip(tiles, streams, strict=True)]
        try:
            errors = [error for error in (future.exception() for future in futures) if error is not None]
        finally:
            gave_up.set()
    for error in sorted(errors, key=lambda error: isinstance(error, EvaluationStoppedError)):
        raise error
