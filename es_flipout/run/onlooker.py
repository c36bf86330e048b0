"""Who is told what a run is doing while that takes long: nothing depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from es_flipout.rollout import Episodes

LOOKS_PER_SECOND = 4
"""How often an onlooker is told how far a generation is."""


class Onlooker:
    """Is told what a run is doing. This one does not care."""

    def doing(self, what: str) -> AbstractContextManager[object]:
        """Is told that something has begun that may take long; it ends with the block.

        Args:
            what: for example "compiling the step of Ant-v5".
        """
        return nullcontext()

    def playing(self, generation: int, finished: int, total: int, env_steps: int, seconds: float) -> None:
        """Is told how far a generation is, a few times per second.

        Args:
            generation: counted from 1.
            finished: episodes of the population that have ended; of several ranks, about so many.
            total: episodes of the population that is being played.
            env_steps: of the episodes of this generation that have ended.
            seconds: since the generation began.
        """


NOBODY = Onlooker()


def told_while_asked(
    should_stop: Callable[[], bool],
    onlooker: Onlooker,
    generation: int,
    tables: Sequence[Episodes],
    num_ranks: int = 1,
) -> Callable[[], bool]:
    """Returns a `should_stop` that also tells an onlooker how far the generation is, but rarely.

    Players ask it before every step or several times per second, whatever they are: they need to know
    nothing of onlookers.

    Args:
        should_stop: is asked every time.
        onlooker: is told.
        generation: counted from 1.
        tables: of the generation, to which others may be added.
        num_ranks: how many share each table; what others have played is in there only at its end.
    """
    if onlooker is NOBODY:
        return should_stop
    started = time.monotonic()
    next_look = started + 1 / LOOKS_PER_SECOND

    def asked() -> bool:
        nonlocal next_look
        if (now := time.monotonic()) >= next_look:
            next_look = now + 1 / LOOKS_PER_SECOND
            table = tables[-1]
            total, finished = len(table), (len(table) - table.unplayed) * num_ranks
            env_steps = sum(each.env_steps for each in tables[:-1]) + table.env_steps * num_ranks
            onlooker.playing(generation, min(finished, total), total, env_steps, now - started)
        return should_stop()

    return asked
