"""Evaluates a population in vector environments: one forward a step, every slot with its own member.

A slot holds one episode of one member. When the episode ends the slot takes the next episode that waits,
so population size and number of slots are independent, and no slot idles before the last episode has begun.
A member's return does not depend on the slot it ran in, on the number of slots, or on who ran beside it.

Given several environments (tiles of slots), it steps them in turn on a thread of their own: while one is in
its physics, the policy runs for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.foreign import ForeignVectorEnv
from es_flipout.envs.slots import SlotVectorEnv
from es_flipout.normalization import EpisodeMoments, RunningStatistics
from es_flipout.population import MemberRows, Population

Step = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]
"""What `VectorEnv.step` returns."""


class EvaluationStoppedError(Exception):
    """The evaluation was asked to stop before every episode had ended."""


@dataclass(frozen=True)
class Evaluation:
    """What a generation of rollouts gave, for P members with E episodes each.

    Attributes:
        returns: sum of rewards of each episode, float64 [P, E]; NaN for one that failed.
        lengths: env steps of each episode, int64 [P, E].
        slot_steps: slots x steps spent, live or not.
        observations: moments of the observations that members acted on, those of failed episodes left out.
        failures: what went wrong, and in how many episodes.
    """

    returns: Tensor
    lengths: Tensor
    slot_steps: int
    observations: RunningStatistics
    failures: Counter[str]

    @property
    def fitness(self) -> Tensor:
        """Mean return of each member, float64 [P]; NaN if one of its episodes failed."""
        return self.returns.mean(dim=1)

    @property
    def env_steps(self) -> int:
        """Live env steps: every one advanced the episode of a member."""
        return int(self.lengths.sum())

    @property
    def live_share(self) -> float:
        """Share of the slot-steps that were live."""
        return self.env_steps / max(self.slot_steps, 1)

    @classmethod
    def of_all(cls, evaluations: Sequence[Evaluation]) -> Evaluation:
        """Returns the evaluation of several populations as that of one, their members in this order."""
        observations = RunningStatistics(*evaluations[0].observations.mean.shape)
        for evaluation in evaluations:
            observations.merge(evaluation.observations)
        return cls(
            torch.cat([each.returns for each in evaluations]),
            torch.cat([each.lengths for each in evaluations]),
            sum(each.slot_steps for each in evaluations),
            observations,
            sum((each.failures for each in evaluations), Counter()),
        )


class VectorizedEvaluator:
    """Runs the episodes of a population in the slots of one or several vector environments."""

    def __init__(self, *envs: VectorEnv[Any, Any, Any]) -> None:
        """Takes the environments.

        Args:
            envs: one vector environment, or several of the same task that take turns. Any that is no
                `SlotVectorEnv` is made one by `ForeignVectorEnv`, whatever its arrays and autoreset mode.

        Raises:
            ValueError: if there is none, or observations are not vectors.
        """
        if not envs:
            raise ValueError("an evaluator needs an environment")
        self.envs = [env if isinstance(env, SlotVectorEnv) else ForeignVectorEnv(env) for env in envs]
        space = envs[0].single_observation_space
        if space.shape is None or len(space.shape) != 1:
            raise ValueError(f"observations must be vectors, got {space}")
        self._observation_size = space.shape[0]

    @torch.no_grad()
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
            should_stop: asked before every step.

        Raises:
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if there are not as many seeds for each member, or a limit is wanted of
                environments that cannot be reset before an episode has ended.
        """
        seeds = np.asarray(reset_seeds, dtype=np.int64)
        if seeds.ndim not in (1, 2) or seeds.shape[0] != population.size or seeds.size == 0:
            raise ValueError(f"{list(seeds.shape)} reset seeds for {population.size} members")
        if episode_limit is not None and not all(env.restarts_anytime for env in self.envs):
            raise ValueError("an episode limit needs environments that can be reset at any time")
        episodes = _Episodes(seeds.reshape(population.size, -1), episode_limit, self._observation_size)
        tiles = [_Tile(env, population, episodes) for env in self.envs]
        with ThreadPoolExecutor(1, "env-step") as stepper:
            try:
                for tile in tiles:
                    tile.begin()
                while any(tile.is_live for tile in tiles):
                    for tile in tiles:
                        if tile.is_stepping:
                            tile.finish_step()
                        if tile.is_live:
                            if should_stop():
                                raise EvaluationStoppedError
                            tile.begin_step(stepper if len(tiles) > 1 else None)
            finally:
                for tile in tiles:
                    tile.abandon()
        return episodes.evaluation(sum(tile.slot_steps for tile in tiles))


class _Episodes:
    """The episodes of a generation: those that wait, in order, and what came of those that ended.

    Episode e is the (e % E)-th of member e // E.
    """

    def __init__(self, seeds: NDArray[np.int64], limit: int | None, observation_size: int) -> None:
        self.shape = seeds.shape
        self.seeds: list[int] = seeds.ravel().tolist()
        self.limit = limit
        self.returns = torch.full((len(self.seeds),), torch.nan, dtype=torch.float64)
        self.lengths = torch.zeros(len(self.seeds), dtype=torch.int64)
        self.moments = EpisodeMoments(observation_size, len(self.seeds))
        self.failures: Counter[str] = Counter()
        self._next = 0

    def take(self, count: int) -> NDArray[np.int64]:
        """Returns the next `count` episodes, or as many as wait."""
        first, self._next = self._next, min(self._next + count, len(self.seeds))
        return np.arange(first, self._next)

    def member(self, episodes: NDArray[np.int64]) -> Tensor:
        """Returns the member of each episode, int64."""
        return torch.from_numpy(episodes // self.shape[1])

    def evaluation(self, slot_steps: int) -> Evaluation:
        """Returns what came of all of them."""
        return Evaluation(
            self.returns.view(self.shape),
            self.lengths.view(self.shape),
            slot_steps,
            self.moments.merged,
            self.failures,
        )


class _Tile:
    """The slots of one environment, each with the episode that it holds.

    Attributes:
        slot_steps: slots x steps so far.
    """

    def __init__(self, env: SlotVectorEnv, population: Population, episodes: _Episodes) -> None:
        self.env = env
        self.population = population
        self.episodes = episodes
        self.slot_steps = 0
        num_slots, size = env.num_envs, episodes.moments.merged.mean.shape[0]
        self._episode = np.full(num_slots, -1, dtype=np.int64)
        self._wanted = np.empty(0, dtype=np.int64)  # taken, but no slot could start them yet
        self._lengths = np.zeros(num_slots, dtype=np.int64)
        self._returns = torch.zeros(num_slots, dtype=torch.float64, device=env.device)
        # Moments are taken around the episode's first observation, lest large constants drown them.
        self._first = torch.zeros(num_slots, size, dtype=torch.float64, device=env.device)
        self._sums = torch.zeros_like(self._first)
        self._squares = torch.zeros_like(self._first)
        self._observations = torch.zeros(0)
        self._live: Tensor | slice = slice(0)
        self._rows: MemberRows | None = None
        self._stepping: Future[Step] | Step | None = None

    @property
    def is_live(self) -> bool:
        """Whether any slot holds an episode, or is about to."""
        return bool((self._episode >= 0).any()) or len(self._wanted) > 0

    @property
    def is_stepping(self) -> bool:
        """Whether a step has begun and not been finished."""
        return self._stepping is not None

    def begin(self) -> None:
        """Starts the first episodes."""
        everything = np.ones(self.env.num_envs, dtype=np.bool_)
        if self.env.restarts_anytime:
            self.env.retire(everything)  # what an evaluation that was stopped has left
        self._refill()

    def begin_step(self, stepper: ThreadPoolExecutor | None) -> None:
        """Lets the members act, and the environment begin its step: on the stepper's thread, if given."""
        assert self._rows is not None
        observations = self._observations
        everywhere = isinstance(self._live, slice)
        actions = self._rows(observations if everywhere else observations[self._live])
        if not everywhere:
            some, shape = actions, (self.env.num_envs, *actions.shape[1:])
            actions = torch.zeros(shape, dtype=some.dtype, device=some.device)
            actions[self._live] = some
        deviations = observations - self._first
        self._sums += deviations
        self._squares.addcmul_(deviations, deviations)
        self._stepping = stepper.submit(self.env.step, actions) if stepper else self.env.step(actions)

    def finish_step(self) -> None:
        """Takes what the step gave, and hands the slots whose episode has ended on."""
        stepping, self._stepping = self._stepping, None
        assert stepping is not None
        result = stepping.result() if isinstance(stepping, Future) else stepping
        self._observations, rewards, terminated, truncated, info = result
        self._returns += rewards
        self._lengths += 1
        self.slot_steps += self.env.num_envs
        ended = (terminated | truncated).cpu().numpy()
        limit = self.episodes.limit
        if limit is not None:
            reached = ~ended & (self._lengths >= limit)
            if reached.any():
                self.env.retire(reached)
                ended |= reached
        ended &= self._episode >= 0
        if ended.any():
            self._conclude(ended, info)
        if ended.any() or len(self._wanted):
            self._refill()

    def abandon(self) -> None:
        """Waits for a step that is under way and forgets it."""
        if isinstance(self._stepping, Future):
            self._stepping.exception()
        self._stepping = None

    def _conclude(self, ended: NDArray[np.bool_], info: dict[str, Any]) -> None:
        """Writes down what came of the episodes in the slots that `ended`."""
        slots = torch.from_numpy(np.flatnonzero(ended))
        numbers = torch.from_numpy(self._episode[ended])
        lengths = torch.from_numpy(self._lengths[ended])
        returns = self._returns[slots].cpu()
        if "failed" in info:
            broken = torch.from_numpy(info["failed"][ended])
            returns[broken] = torch.nan
        failed = ~returns.isfinite()
        returns[failed] = torch.nan
        for slot, is_failed in zip(slots.tolist(), failed.tolist(), strict=True):
            if is_failed:
                self.episodes.failures[_failure(info, slot)] += 1
        self.episodes.returns[numbers] = returns
        self.episodes.lengths[numbers] = lengths
        counts = lengths.to(self._sums).unsqueeze(1)
        offsets = self._sums[slots] / counts
        squares = self._squares[slots] - self._sums[slots] * offsets
        offsets[failed] = torch.nan  # an episode that broke must not poison the moments of the others
        means = self._first[slots] + offsets
        self.episodes.moments.add(numbers, lengths, means.cpu(), squares.clamp(min=0.0).cpu())
        self._episode[ended] = -1

    def _refill(self) -> None:
        """Gives free slots the episodes that wait, and starts them."""
        changed = self._start()
        live = self._episode >= 0
        if self._rows is not None and isinstance(self._live, slice) and live.all():
            self._rows.assign(torch.from_numpy(changed), self.episodes.member(self._episode[changed]))
            return
        self._live = slice(None) if live.all() else torch.from_numpy(np.flatnonzero(live))
        self._rows = self.population.select(self.episodes.member(self._episode[live]))

    def _start(self) -> NDArray[np.int64]:
        """Starts episodes in free slots until none is free, none waits, or none can; returns the slots."""
        changed = np.zeros(self.env.num_envs, dtype=np.bool_)
        while True:
            free = np.flatnonzero(self._episode < 0)
            self._wanted = np.concatenate([self._wanted, self.episodes.take(len(free) - len(self._wanted))])
            slots = free[: len(self._wanted)]
            if len(slots) == 0:
                break
            episode = np.full(self.env.num_envs, -1, dtype=np.int64)
            episode[slots] = self._wanted
            seeds = [self.episodes.seeds[each] if each >= 0 else None for each in episode.tolist()]
            mask = episode >= 0
            # Every SlotVectorEnv takes a seed a row; Gymnasium's base class does not declare it.
            self._observations, info = self.env.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]
            started = mask & info.get("started", mask)
            self._take_over(np.flatnonzero(started), episode[started])
            self._wanted = self._wanted[~started[slots]]
            changed |= started
            if "failed" in info:
                failed = info["failed"] & (self._episode >= 0)
                self._conclude(failed, info)
                changed |= failed
            elif len(self._wanted):
                break
        return np.flatnonzero(changed & (self._episode >= 0))

    def _take_over(self, slots: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Notes that slots hold new episodes, of which the first observation is there."""
        rows = torch.from_numpy(slots)
        self._episode[slots] = episodes
        self._lengths[slots] = 0
        self._returns[rows] = 0.0
        self._first[rows] = self._observations[rows].to(self._first)
        self._sums[rows] = 0.0
        self._squares[rows] = 0.0


def _failure(info: dict[str, Any], slot: int) -> str:
    """Returns why the episode in a slot failed."""
    if "failed" in info and info["failed"][slot]:
        reason: str = info["failures"][int(info["failed"][:slot].sum())]
        return reason
    return "the return is not finite"
