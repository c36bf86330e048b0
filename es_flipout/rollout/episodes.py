"""What a generation of rollouts gave: returns, lengths, faults, and the moments of observations."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.normalization import EpisodeMoments, RunningStatistics

NOT_FINITE = "a reward or an observation is not finite"
"""Failure of an episode whose figures are of no use."""


class EvaluationStoppedError(Exception):
    """The evaluation was asked to stop before every episode had ended."""


@dataclass(frozen=True)
class Evaluation:
    """What a generation of rollouts gave, for P members with E episodes each.

    Attributes:
        returns: sum of rewards of each episode, float64 [P, E]; NaN for one that failed.
        lengths: env steps of each episode, int64 [P, E].
        slot_steps: slots x steps spent, live or not; of several tiles each counts its own steps.
        observations: moments of the observations that members acted on, those of failed episodes left out; of
            no feature, and never counted, if observations are not vectors.
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

    def fitness_without(self, alive_bonus: float) -> Tensor:
        """Returns the fitness less what an environment pays for each env step survived, float64 [P].

        The step that ends an episode counts as survived, as in ARS (Mania et al., 2018, arXiv 1803.07055).
        """
        return (self.returns - alive_bonus * self.lengths).mean(dim=1)

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


class EpisodeResults(Protocol):
    """Where a `Tile` writes down what came of episodes. Episode e is the (e % E)-th of some member.

    Attributes:
        seeds: reset seed of each episode, int64 [.., E].
        observation_size: features of which moments are kept; None for none.
    """

    seeds: NDArray[np.int64]
    observation_size: int | None

    def members(self, episodes: NDArray[np.int64]) -> Tensor:
        """Returns the member of each episode, int64."""

    def conclude(
        self,
        episodes: NDArray[np.int64],
        returns: NDArray[np.float64],
        lengths: NDArray[np.int64],
        moments: Tensor | None,
        failures: Mapping[int, str],
    ) -> None:
        """Writes down what came of some episodes; see `Results.conclude`."""


class Results:
    """What came of the episodes of a generation. Episode e is the (e % E)-th of member e // E."""

    def __init__(self, seeds: NDArray[np.int64], observation_size: int | None) -> None:
        """Has room for the episodes of `seeds` [P, E]; no moments are kept if `observation_size` is None."""
        self.seeds = seeds
        self.observation_size = observation_size
        self.returns = np.full(seeds.size, np.nan)
        self.lengths = np.zeros(seeds.size, dtype=np.int64)
        self.moments = EpisodeMoments(observation_size or 0, seeds.size)
        self.failures: Counter[str] = Counter()
        self.lock = threading.Lock()

    @classmethod
    def of(
        cls,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]],
        population_size: int,
        observation_size: int | None,
    ) -> Results:
        """Returns room for the episodes of `reset_seeds`, [P, E], or [P] for one episode a member.

        Raises:
            ValueError: if there are not as many seeds for each member.
        """
        seeds = np.asarray(reset_seeds, dtype=np.int64)
        if seeds.ndim not in (1, 2) or seeds.shape[0] != population_size or seeds.size == 0:
            raise ValueError(f"{list(seeds.shape)} reset seeds for {population_size} members")
        return cls(seeds.reshape(population_size, -1), observation_size)

    def members(self, episodes: NDArray[np.int64]) -> Tensor:
        """Returns the member of each episode, int64."""
        return torch.from_numpy(episodes // self.seeds.shape[1])

    def conclude(
        self,
        episodes: NDArray[np.int64],
        returns: NDArray[np.float64],
        lengths: NDArray[np.int64],
        moments: Tensor | None,
        failures: Mapping[int, str],
    ) -> None:
        """Writes down what came of some episodes, on whatever thread.

        Args:
            episodes: which, [M].
            returns: their returns, [M].
            lengths: their env steps, [M].
            moments: of their observations, [3, M, O], as `EpisodeMoments.add` takes them; None if none are
                kept.
            failures: why some of them failed, by index into `episodes`. One whose return or moments are not
                finite has failed too.
        """
        broken = ~np.isfinite(returns)
        broken[list(failures)] = True
        if moments is not None:
            broken |= ~moments.isfinite().all(dim=2).all(dim=0).numpy()
        with self.lock:
            self.returns[episodes] = np.where(broken, np.nan, returns)
            self.lengths[episodes] = lengths
            self.failures.update(failures.get(index, NOT_FINITE) for index in np.flatnonzero(broken).tolist())
            if moments is not None:
                # An episode that broke must not poison the moments of the others.
                self.moments.add(episodes.tolist(), np.where(broken, 0, lengths).tolist(), moments)

    def evaluation(self, slot_steps: int) -> Evaluation:
        """Returns all of it."""
        return Evaluation(
            torch.from_numpy(self.returns.reshape(self.seeds.shape)),
            torch.from_numpy(self.lengths.reshape(self.seeds.shape)),
            slot_steps,
            self.moments.merged,
            self.failures,
        )
