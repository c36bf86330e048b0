"""The seeds that episodes start from, as a function of (seed, generation, block)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_flipout.choices import ResetSeeds
from es_flipout.seeding import stream_seeds


def reset_seeds(
    population_size: int,
    episodes: int = 1,
    *,
    seed: int = 0,
    generation: int = 0,
    block: int = 0,
    kind: ResetSeeds = "fresh",
    pairs_share: bool = True,
) -> NDArray[np.int64]:
    """Returns the reset seeds of every member of a population, int64 [P, E], each of 31 bits.

    Args:
        population_size: members P.
        episodes: episodes E per member.
        seed: the run's seed.
        generation: the generation that they are for.
        block: which of the generation's populations; see `FlipoutES.ask_more`.
        kind: "fresh" gives every member (or pair) seeds of its own, "common" the same ones to all members of
            a generation, "fixed" the same ones to all generations.
        pairs_share: whether, of fresh seeds, members 2q and 2q + 1 (an antithetic pair) get the same ones.

    Raises:
        ValueError: if an odd population is to share seeds in pairs.
    """
    if kind != "fresh":
        common = stream_seeds(seed, 0 if kind == "fixed" else generation, "reset", 0, episodes)
        return np.tile(common, (population_size, 1))
    share = 2 if pairs_share else 1
    if population_size % share:
        raise ValueError(
            f"a population that shares seeds in pairs must be even, got {population_size} members"
        )
    drawn = stream_seeds(seed, generation, "reset", block, population_size // share * episodes)
    return np.repeat(drawn.reshape(-1, episodes), share, axis=0)
