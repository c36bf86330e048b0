"""The table of episodes: what to play, and what came of it.

Every player takes rows of this table and fills them in:

    episodes = Episodes.of_population(reset_seeds)      # member and reset seed of each
    player.play(population, episodes)                   # returns, lengths, faults, moments of observations
    es.tell(episodes.fitness)

A share of the work is `take`, its answer `put`, a retry `take` again. What processes that hold the same
table tell each other is an `Outcome`. Moments are merged within blocks of `block_size` consecutive ids,
whoever plays them, and then block by block: see `moments`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from es_flipout.choices import BLOCK_SIZE
from es_flipout.normalization import RunningStatistics
from es_flipout.rollout.moments import BlockMoments, Floats, Ints, MomentRecords
from es_flipout.rollout.outcome import Outcome
from es_flipout.settings import number

NOT_FINITE = "a reward or an observation is not finite"
"""Fault of an episode whose return or observations cannot be used."""


class Episodes:
    """E episodes, one per row.

    An episode has failed if it has a fault: something broke, or its return or an observation is not finite.
    Its return is NaN, and its observations are not counted.

    Attributes:
        member: who plays, int64 [E]; 0 for the center.
        reset_seed: where the episode starts from, int64 [E].
        limit: env steps after which every episode is cut off; None for the environment's own limit.
        action_noise: standard deviation of the Gaussian noise on every action, in units of the action; what
            comes of it is clipped to the action space. It depends on the reset seed and the env step alone.
        ids: position of each row in the table that this one was taken from, int64 [E].
        returns: sum of rewards, float64 [E]; NaN if it has failed or not ended.
        lengths: env steps, int64 [E].
        faults: why episodes failed, by row.
        info: metrics from `info`, by name (see `score_info`), float64 [E] each; NaN for an episode that has
            failed, not ended, or has no such entry. Only a `Scorer` records them.
        observation_size: features O of which moments are kept, set by the player; None if observations are
            not vectors.
        spent_steps: env steps spent, whether an episode needed them or not.
        randomized: of a score: the episodes of the same seeds, randomized; None if there are none.
    """

    def __init__(
        self,
        member: Ints,
        reset_seed: Ints,
        *,
        limit: int | None = None,
        action_noise: float = 0.0,
        block_size: int = BLOCK_SIZE,
        info: Sequence[str] = (),
        ids: Ints | None = None,
        num_ids: int | None = None,
    ) -> None:
        """Makes a table of episodes to be played.

        Args:
            member: int64 [E].
            reset_seed: int64 [E].
            limit: see the class.
            action_noise: see the class.
            block_size: consecutive ids that form a block.
            info: names of the metrics from `info` that are wanted.
            ids: see the class; 0 to E - 1 if None.
            num_ids: size of the table that the ids are of; E if None.

        Raises:
            ValueError: if the limit is less than 1, or the noise is not a number >= 0.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"the limit of env steps must be >= 1 or None, got {limit}")
        self.member, self.reset_seed, self.limit = member, reset_seed, limit
        self.action_noise = number("action_noise", action_noise)
        self.block_size = block_size
        self.ids = np.arange(len(member)) if ids is None else ids
        self._num_ids = len(member) if num_ids is None else num_ids
        self.returns: Floats = np.full(len(member), np.nan)
        self.lengths: Ints = np.zeros(len(member), np.int64)
        self.faults: dict[int, str] = {}
        self.info: dict[str, Floats] = {name: np.full(len(member), np.nan) for name in info}
        self.observation_size: int | None = None
        self.spent_steps = 0
        self.randomized: Episodes | None = None
        self._played = np.zeros(len(member), np.bool_)
        self._moments = BlockMoments(block_size, self._num_ids)

    @classmethod
    def of_population(
        cls,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]] | Ints,
        *,
        limit: int | None = None,
        action_noise: float = 0.0,
        block_size: int = BLOCK_SIZE,
    ) -> Episodes:
        """Returns the episodes of members 0 to P - 1, in this order.

        Args:
            reset_seeds: seeds of the episodes of each member, [P, n], or [P] for one episode per member.
            limit: see the class.
            action_noise: see the class.
            block_size: see `Episodes`.

        Raises:
            ValueError: if there are no seeds, or not as many for each member; or as `Episodes` does.
        """
        try:
            seeds = np.asarray(reset_seeds, dtype=np.int64)
        except ValueError as error:
            raise ValueError(f"every member needs the same number of reset seeds: {error}") from error
        if seeds.ndim not in (1, 2) or seeds.size == 0:
            raise ValueError(f"reset seeds must be [members] or [members, episodes], got {list(seeds.shape)}")
        seeds = seeds.reshape(len(seeds), -1)
        member = np.repeat(np.arange(len(seeds)), seeds.shape[1])
        return cls(member, seeds.ravel(), limit=limit, action_noise=action_noise, block_size=block_size)

    @classmethod
    def concatenated(cls, tables: Sequence[Episodes]) -> Episodes:
        """Returns the played episodes of several populations as those of one, their members in this order."""
        first_members = np.cumsum([0, *(each.num_members for each in tables[:-1])])
        whole = cls(
            np.concatenate([each.member + first for each, first in zip(tables, first_members, strict=True)]),
            np.concatenate([each.reset_seed for each in tables]),
            limit=tables[0].limit,
            action_noise=tables[0].action_noise,
            block_size=tables[0].block_size,
        )
        whole.returns = np.concatenate([each.returns for each in tables])
        whole.lengths = np.concatenate([each.lengths for each in tables])
        whole.observation_size = tables[0].observation_size
        whole.spent_steps = sum(each.spent_steps for each in tables)
        whole._played = np.concatenate([each._played for each in tables])
        row = 0
        for each in tables:
            whole.faults |= {row + at: fault for at, fault in each.faults.items()}
            row += len(each)
        records = [MomentRecords.of(each.observations(), index) for index, each in enumerate(tables)]
        whole._moments.replace(MomentRecords.joined(records))
        return whole

    def __len__(self) -> int:
        """Number of episodes E."""
        return len(self.member)

    # What to play.

    @property
    def num_members(self) -> int:
        """Number of members P.

        Raises:
            ValueError: if the table is not that of a whole population, members in order, all equally often.
        """
        count = int(self.member[-1]) + 1
        if not np.array_equal(self.member, np.repeat(np.arange(count), len(self) // count)):
            raise ValueError("the table is not that of a whole population, with as many episodes per member")
        return count

    @property
    def unplayed(self) -> int:
        """How many episodes have not ended."""
        return int(len(self) - np.count_nonzero(self._played))

    def runs_of_members(self) -> list[Ints]:
        """Returns the rows of each run of episodes of the same member."""
        return np.split(np.arange(len(self)), np.flatnonzero(np.diff(self.member)) + 1)

    def take(self, rows: Ints) -> Episodes:
        """Returns some rows as a table of their own, to be played."""
        part = Episodes(
            self.member[rows],
            self.reset_seed[rows],
            limit=self.limit,
            action_noise=self.action_noise,
            block_size=self.block_size,
            ids=self.ids[rows],
            num_ids=self._num_ids,
        )
        part.observation_size = self.observation_size
        return part

    # What came of it.

    def record(
        self,
        rows: Ints,
        returns: Floats,
        lengths: Ints,
        sums: Floats | None = None,
        faults: Mapping[int, str] = {},
    ) -> None:
        """Writes down what came of M episodes.

        Args:
            rows: which, int64 [M].
            returns: their returns, [M].
            lengths: their env steps, [M].
            sums: for each, a reference point near its observations, and the sums of the deviations from it
                and of their squares, [3, M, O]. None if no moments are kept, or all have failed.
            faults: why some of them failed, by index into `rows`.

        Raises:
            ValueError: if one has been written down before, or moments are to be kept and none are given for
                an episode that has not failed.
        """
        self._mark_played(rows)
        broken = ~np.isfinite(returns)
        broken[list(faults)] = True
        if sums is not None:
            broken |= ~np.isfinite(sums).all(axis=(0, 2))
        elif self.observation_size is not None:
            if not broken.all():
                raise ValueError("moments of the observations are missing")
            sums = np.zeros((3, len(rows), self.observation_size))
        self.returns[rows] = np.where(broken, np.nan, returns)
        self.lengths[rows] = lengths
        for index in np.flatnonzero(broken).tolist():
            self.faults[int(rows[index])] = faults.get(index, NOT_FINITE)
        if sums is not None:
            self._moments.add(self.ids[rows].tolist(), np.where(broken, 0, lengths).tolist(), sums)

    def record_all(
        self, returns: Floats, lengths: Ints, faults: Mapping[int, str], moments: RunningStatistics
    ) -> None:
        """Writes down what came of all episodes, with one record of the moments of all that did not fail.

        Args:
            returns: float64 [E].
            lengths: env steps, int64 [E].
            faults: why some failed, by row.
            moments: of the observations of the others, instead of one record per block.

        Raises:
            ValueError: if one has been written down before.
        """
        self.observation_size = None  # nothing is kept per block
        self.record(np.arange(len(self)), returns, lengths, faults=faults)
        self.observation_size = len(moments.mean)
        self._moments.replace(MomentRecords.of(moments))

    def put(self, rows: Ints, played: Episodes) -> None:
        """Writes down what came of rows that were taken; they may be parts of blocks.

        Args:
            rows: which they are, int64 [M], as they were given to `take`.
            played: their table, in which all have ended.

        Raises:
            ValueError: if one has been written down before.
        """
        self._mark_played(rows)
        self.returns[rows], self.lengths[rows] = played.returns, played.lengths
        self.faults |= {int(rows[row]): fault for row, fault in played.faults.items()}
        self.spent_steps += played.spent_steps
        self.observation_size = played.observation_size
        self._moments.update(played._moments)

    def outcome(self) -> Outcome:
        """Returns what came of the episodes that have ended; those of a block have all ended, or none has."""
        rows = np.flatnonzero(self._played)
        place = {row: index for index, row in enumerate(rows.tolist())}
        faults = {place[row]: fault for row, fault in self.faults.items()}
        moments = self._moments.records()
        return Outcome(rows, self.returns[rows], self.lengths[rows], faults, self.spent_steps, moments)

    def fill_in(self, outcome: Outcome) -> None:
        """Writes down what came of all episodes, whatever is known of some already.

        Raises:
            ValueError: if it is not the outcome of all.
        """
        if not np.array_equal(outcome.rows, np.arange(len(self))):
            raise ValueError(f"the outcome of {len(self)} episodes is needed, got {len(outcome.rows)}")
        self.returns, self.lengths = outcome.returns.copy(), outcome.lengths.copy()
        self.faults, self.spent_steps = dict(outcome.faults), outcome.spent_steps
        self._played[:] = True
        if outcome.moments is not None:
            self.observation_size = outcome.moments.means.shape[1]
            self._moments.replace(outcome.moments)

    def _mark_played(self, rows: Ints) -> None:
        if self._played[rows].any():
            raise ValueError("an episode cannot end twice")
        self._played[rows] = True

    @property
    def env_steps(self) -> int:
        """Live env steps: each advanced the episode of a member."""
        return int(self.lengths.sum())

    @property
    def live_share(self) -> float:
        """Share of the env steps spent that were live."""
        return self.env_steps / max(self.spent_steps, 1)

    @property
    def failures(self) -> Counter[str]:
        """What went wrong, and in how many episodes: most frequent first, then by the text."""
        found = Counter(self.faults.values())
        return Counter(dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))))

    @property
    def fitness(self) -> Tensor:
        """Mean return of each member, float64 [P]; NaN if one of its episodes failed."""
        return self.fitness_without(0.0)

    def fitness_without(self, alive_bonus: float) -> Tensor:
        """Returns the fitness without what the environment pays for mere survival, float64 [P].

        Args:
            alive_bonus: what it pays per env step survived. The step that ends an episode counts as survived,
                as in ARS (Mania et al., 2018, arXiv 1803.07055).
        """
        returns = self.returns - alive_bonus * self.lengths
        return torch.from_numpy(returns).view(self.num_members, -1).mean(dim=1)

    def observations(self) -> RunningStatistics:
        """Returns the moments of all observations acted on, those of failed episodes left out."""
        records = self._moments.records()
        return RunningStatistics(self.observation_size or 0) if records is None else records.merged()

    @property
    def mean_return(self) -> float:
        """Mean return of the episodes that did not fail; NaN if all did."""
        returns = self._usable_returns()
        return statistics.fmean(returns) if returns else math.nan

    @property
    def std_return(self) -> float:
        """Standard deviation of their returns (of the population: 0 for one episode)."""
        returns = self._usable_returns()
        return statistics.pstdev(returns) if returns else math.nan

    @property
    def info_means(self) -> dict[str, float]:
        """Mean of each metric from `info` over the episodes that have it; NaN if none has."""
        usable = {name: values[~np.isnan(values)].tolist() for name, values in self.info.items()}
        return {name: statistics.fmean(each) if each else math.nan for name, each in usable.items()}

    def _usable_returns(self) -> list[float]:
        return [value for row, value in enumerate(self.returns.tolist()) if row not in self.faults]
