"""What a generation of rollouts gave: returns, lengths, faults, and the moments of observations."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.normalization import EpisodeMoments, RunningStatistics


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

    def members(self, episodes: NDArray[np.int64]) -> Tensor:
        """Returns the member of each episode, int64."""
        return torch.from_numpy(episodes // self.seeds.shape[1])

    def evaluation(self, slot_steps: int) -> Evaluation:
        """Returns all of it."""
        return Evaluation(
            torch.from_numpy(self.returns.reshape(self.seeds.shape)),
            torch.from_numpy(self.lengths.reshape(self.seeds.shape)),
            slot_steps,
            self.moments.merged,
            self.failures,
        )
