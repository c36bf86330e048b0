"""Who plays what of a table: its blocks go to whoever asks for them next.

Nothing but the number of blocks that have been claimed is shared, so a counter is all that several players of
the same table need to have in common: a number of this process, or one that all ranks of a run add to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.moments import Ints

SHARES_PER_PLAYER = 4
"""A share in advance holds what waits, divided by this many shares for everyone who plays."""


class Claims:
    """The blocks of a table, handed out in order.

    Attributes:
        num_waiting: episodes that nobody has claimed, as far as is known here.
    """

    def __init__(
        self, episodes: Episodes, *, add: Callable[[int], int] | None = None, num_players: int = 1
    ) -> None:
        """Takes a table of which nothing has been claimed.

        Args:
            episodes: the table.
            add: adds blocks to a counter that all players of the table share, and returns the sum; None if
                this player is alone.
            num_players: how many there are.
        """
        self._add = self._add_here if add is None else add
        self._claimed_here = 0
        self._num_players = num_players
        self._size, self._block_size = len(episodes), episodes.block_size
        self.num_waiting = self._size

    def _add_here(self, number: int) -> int:
        self._claimed_here += number
        return self._claimed_here

    def claim(self, num_episodes: int) -> Ints:
        """Claims the next blocks, with so many episodes or a few more; returns the rows, none at the end."""
        if not self.num_waiting:
            return np.arange(0)
        number = math.ceil(num_episodes / self._block_size)
        end = self._add(number)
        first, last = (min(each * self._block_size, self._size) for each in (end - number, end))
        self.num_waiting = self._size - last
        return np.arange(first, last)

    @property
    def is_alone(self) -> bool:
        """Whether nobody else plays the table."""
        return self._num_players == 1

    def fair_share(self, num_held: int = 0, num_parts: int = 1) -> int:
        """Returns how many episodes may be taken in advance, so that everyone would still find as many.

        Args:
            num_held: episodes that wait here, claimed already.
            num_parts: how many play what is claimed here.
        """
        waiting = self.num_waiting + num_held
        return math.ceil(waiting / (SHARES_PER_PLAYER * num_parts * self._num_players))

    def is_scarce(self, num_envs: int, num_held: int = 0) -> bool:
        """Returns whether no more episodes wait than fit into the envs of everyone.

        Args:
            num_envs: of each player.
            num_held: episodes that wait here, claimed already.
        """
        return self.num_waiting + num_held <= num_envs * self._num_players
