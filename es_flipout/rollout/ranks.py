"""A rank of a run as a player: all ranks play the same table, and each ends up with all of it.

Every rank holds the policy, draws the same noise, and claims blocks of the table as it becomes free. What
came of them is merged in the order of the blocks, so the result has the same bits whoever has played what.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from es_flipout.population import Population
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.moments import Ints, MomentRecords
from es_flipout.rollout.outcome import Outcome
from es_flipout.rollout.player import Player, never, nothing
from es_flipout.rollout.rank_contract import Ranks


class RankPlayer(Player):
    """Plays a rank's part of each table, and gets what came of the rest from the other ranks.

    All ranks must play the same tables of the same populations.
    """

    def __init__(self, player: Player, ranks: Ranks) -> None:
        """Takes what plays on this rank.

        Args:
            player: plays the episodes of this rank.
            ranks: connected.
        """
        self._player, self._ranks = player, ranks
        self._rows: Ints | None = None  # of the last table, if this rank was dealt a share of it

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
        if claims is not None:
            raise ValueError("the ranks claim the blocks of a table themselves")
        asked = self._ranks.stop_request(should_stop)

        def play() -> Outcome:
            if self._player.needs_fixed_share(population):
                return self._play_share(population, episodes, asked, meanwhile)
            shared = Claims(episodes, add=self._ranks.counter(), num_players=self._ranks.size)
            self._player.play(population, episodes, claims=shared, should_stop=asked, meanwhile=meanwhile)
            return episodes.outcome()

        outcome = self._ranks.together(play, Outcome.joined, should_stop=should_stop, is_timed=True)
        episodes.fill_in(outcome)
        return episodes

    def _play_share(
        self,
        population: Population,
        episodes: Episodes,
        should_stop: Callable[[], bool],
        meanwhile: Callable[[], None],
    ) -> Outcome:
        """Plays the episodes that are dealt to this rank, and keeps one record of their moments."""
        rows = share_of_rank(population, episodes, self._ranks.rank, self._ranks.size)
        self._rows = rows
        share = Episodes(
            episodes.member[rows],
            episodes.reset_seed[rows],
            limit=episodes.limit,
            action_noise=episodes.action_noise,
        )
        if len(rows):
            self._player.play(population, share, should_stop=should_stop, meanwhile=meanwhile)
        else:
            meanwhile()
        has_moments = share.observation_size is not None
        record = MomentRecords.of(share.observations(), self._ranks.rank) if has_moments else None
        return Outcome(rows, share.returns, share.lengths, share.faults, share.spent_steps, record)

    @override
    def needs_fixed_share(self, population: Population) -> bool:
        return self._player.needs_fixed_share(population)

    @override
    def prefetch(self, reset_seeds: NDArray[np.int64]) -> None:
        if self._rows is not None:  # the next table is cut like the last
            self._player.prefetch(reset_seeds.ravel()[self._rows])

    @override
    def close(self) -> None:
        self._player.close()


def share_of_rank(population: Population, episodes: Episodes, rank: int, size: int) -> Ints:
    """Returns the rows that one of several ranks plays: as many of each base's members, in their order."""
    count = population.size // population.noise.num_bases
    within_base = episodes.member % count
    return np.flatnonzero((within_base >= count * rank // size) & (within_base < count * (rank + 1) // size))
