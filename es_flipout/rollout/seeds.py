"""The seeds that episodes start from, as a function of (seed, generation, block)."""

from __future__ import annotations

from typing import Literal

from es_flipout.seeding import stream_seed

ResetSeeds = Literal["fresh", "common", "fixed"]


def reset_seeds(
    population_size: int,
    episodes: int = 1,
    *,
    seed: int = 0,
    generation: int = 0,
    block: int = 0,
    kind: ResetSeeds = "fresh",
    pairs_share: bool = True,
) -> list[list[int]]:
    """Returns the reset seeds of every member of a population, [P][E], each of 31 bits.

    Args:
        population_size: members P.
        episodes: episodes E a member.
        seed: the run's seed.
        generation: the generation that they are for.
        block: which of the generation's populations; see `FlipoutES.ask_more`.
        kind: "fresh" gives every member (or pair) seeds of its own, "common" the same ones to all members of
            a generation, "fixed" the same ones to all generations.
        pairs_share: whether, of fresh seeds, members 2q and 2q + 1 (an antithetic pair) get the same ones.

    Raises:
        ValueError: if an odd population is to share seeds in pairs.
    """

    def of_index(index: int) -> list[int]:
        first = index * episodes
        return [
            stream_seed(seed, 0 if kind == "fixed" else generation, "reset", first + episode, bits=31)
            for episode in range(episodes)
        ]

    if kind != "fresh":
        return [of_index(0)] * population_size
    share = 2 if pairs_share else 1
    if population_size % share:
        raise ValueError(
            f"a population that shares seeds in pairs must be even, got {population_size} members"
        )
    count = population_size // share
    different = [of_index(index) for index in range(block * count, (block + 1) * count)]
    return [seeds for seeds in different for _ in range(share)]
