"""Plays the episodes of one generation, as configured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from es_flipout.rollout import Episodes, Player, PlayError, reset_seeds
from es_flipout.run.config import Config
from es_flipout.run.errors import RunBrokenError
from es_flipout.run.failure_watch import FailureWatch
from es_flipout.run.onlooker import NOBODY, Onlooker, told_while_asked
from es_flipout.strategy import FlipoutES


def play_generation(
    config: Config,
    es: FlipoutES,
    player: Player,
    watch: FailureWatch,
    *,
    limit: int | None,
    is_last: bool,
    should_stop: Callable[[], bool],
    meanwhile: Callable[[], None],
    onlooker: Onlooker = NOBODY,
    num_ranks: int = 1,
) -> Episodes:
    """Plays a population, and further ones until the generation has `rollout.min_env_steps`.

    Args:
        config: of the run.
        es: the strategy, which is asked for the populations.
        player: plays them.
        watch: looks at the episodes of each.
        limit: env steps after which an episode is cut off; None for the environment's own limit.
        is_last: whether no other generation follows, for which the player could prepare.
        should_stop: asked several times per second.
        meanwhile: see `Player.play`; called for each population.
        onlooker: is told how far the generation is.
        num_ranks: of the run.

    Raises:
        PlayStoppedError: if `should_stop` said so.
        RunBrokenError: if the player cannot do its work.
        RunError: as `FailureWatch.check` does.
    """
    tables: list[Episodes] = []
    env_steps = 0
    asked = told_while_asked(should_stop, onlooker, es.generation + 1, tables, num_ranks)
    while not tables or env_steps < config.rollout.min_env_steps:
        population = es.ask_more() if tables else es.ask()
        if not tables and not is_last:
            player.prefetch(seeds_of(config, es.generation + 1, block=0))
        seeds = seeds_of(config, es.generation, block=len(tables))
        episodes = Episodes.of_population(
            seeds,
            limit=limit,
            action_noise=config.rollout.action_noise,
            block_size=config.rollout.block_size,
        )
        tables.append(episodes)
        try:
            player.play(population, episodes, should_stop=asked, meanwhile=meanwhile)
        except PlayError as error:
            raise RunBrokenError(str(error)) from error
        watch.check(episodes, es.generation + 1)
        env_steps += episodes.env_steps
    return tables[0] if len(tables) == 1 else Episodes.concatenated(tables)


def seeds_of(config: Config, generation: int, block: int) -> NDArray[np.int64]:
    """Returns the reset seeds of a generation's population, int64 [P, E]; see `reset_seeds`."""
    rollout, es = config.rollout, config.es
    return reset_seeds(
        es.population_size,
        rollout.episodes,
        seed=config.seed,
        generation=generation,
        block=block,
        kind=rollout.reset_seeds,
        pairs_share=es.antithetic and rollout.antithetic_pairs_share_seeds,
    )
