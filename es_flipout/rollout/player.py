"""The contract of whatever plays episodes: all players are interchangeable."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from es_flipout.error_text import OneLineError
from es_flipout.population import Population
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes


class PlayStoppedError(Exception):
    """Playing was asked to stop before every episode had ended."""


class PlayError(OneLineError, RuntimeError):
    """A player cannot do its work; the message says why."""


def never() -> bool:
    """Never asks to stop."""
    return False


def nothing() -> None:
    """Does nothing."""


def check_members(population: Population, episodes: Episodes) -> None:
    """Checks that a population has the members of a table.

    Raises:
        ValueError: if it has not.
    """
    if (last := int(episodes.member.max())) >= population.size:
        raise ValueError(f"episodes of member {last} for a population of {population.size}")


COMPANIES, MOST_ROUNDS = 8, 4
"""If it matters who plays beside whom: fewest companies of a table, and most episodes of an env in one."""


def company_size(num_envs: int, episodes: Episodes) -> int:
    """Returns how many episodes N envs play among themselves, if it matters who plays beside whom.

    They are whole blocks, so that those who play other companies have blocks of their own.
    """
    rounds = min(max(len(episodes) // (COMPANIES * num_envs), 1), MOST_ROUNDS)
    return math.ceil(rounds * num_envs / episodes.block_size) * episodes.block_size


class Player(ABC):
    """Plays episodes of the members of populations.

    A return depends on nothing but the member and the reset seed: not on which player plays it or what plays
    beside it.
    """

    @abstractmethod
    def play(
        self,
        population: Population,
        episodes: Episodes,
        *,
        claims: Claims | None = None,
        should_stop: Callable[[], bool] = never,
        meanwhile: Callable[[], None] = nothing,
    ) -> Episodes:
        """Plays the episodes of a table.

        Args:
            population: the members.
            episodes: what to play; its rows are filled in.
            claims: gives out the blocks of the table, if others play it, too: what they claim is theirs. None
                if this player is to play all.
            should_stop: asked before every step, or several times per second.
            meanwhile: called once, while worker processes or a GPU play, or before the first step if this
                process plays. It may not be called if playing is stopped before.

        Returns:
            The same table.

        Raises:
            PlayError: if the player cannot do its work at all.
            PlayStoppedError: if `should_stop` said so; the table is then of no use.
            ValueError: if the population or the table is of a kind that the player cannot handle.
        """

    def needs_fixed_share(self, population: Population) -> bool:
        """Returns whether it must know from the start what it plays; `play` then takes no `claims`."""
        return population.noise.device.type != "cpu"

    def prefetch(self, reset_seeds: NDArray[np.int64]) -> None:  # noqa: B027 - most players have no use for it
        """Announces the reset seeds of a table to come, which the player may prepare beside the next one.

        If that table never comes, nothing is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes environments and ends processes."""
