"""Checks before a run starts: whether an environment has the info entries that its scores are to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from es_flipout.envs.guarded_env import GuardedEnv
from es_flipout.envs.values import EnvFault, info_number
from es_flipout.rollout.score_info import entries_of
from es_flipout.run.build import official_maker
from es_flipout.run.config import Config

MOST_STEPS = 1000
"""Env steps of random actions in which an entry must appear, unless the episode is longer."""


def check_info(config: Config, announce: Callable[[str], None] = lambda line: None) -> None:
    """Checks the entries of `evaluation.info` in the official environment.

    Most entries are there in the first step. Some appear only at the end of an episode, so that one with
    random actions is played on until all have appeared, it ends, or `MOST_STEPS` are over.

    Args:
        config: of the run.
        announce: is told which entries have not appeared, if the episode has not ended by then.

    Raises:
        ValueError: if the environment does not have an entry, or one is not a number; the message lists those
            that it has.
    """
    wanted = entries_of(config.evaluation.info)
    if not wanted:
        return
    env = GuardedEnv(official_maker(config.env))
    try:
        seen, ended = _seen(env, wanted)
    except EnvFault:
        return  # faults are counted when episodes are played
    finally:
        env.close()
    missing = [entry for entry in wanted if entry not in seen]
    if not missing:
        return
    has = f"it has {', '.join(sorted(seen))}" if seen else "its info is empty"
    what = f"evaluation.info: {config.env.id} has no info entry {missing[0]!r}"
    if ended:
        raise ValueError(f"{what} by the end of an episode; {has}")
    announce(f"{what} in the first {MOST_STEPS:,} steps of an episode; {has}")


def _seen(env: GuardedEnv, wanted: list[str]) -> tuple[set[str], bool]:
    """Returns the entries that have appeared by the time all that are wanted have, and if the episode ended.

    Raises:
        EnvFault: if the environment fails.
        ValueError: if an entry that is wanted is not a number.
    """
    env.reset(0)
    env.action_space.seed(0)
    seen: set[str] = set()
    ended = False
    for _ in range(MOST_STEPS):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        _check_numbers(info, wanted)
        seen |= {str(name) for name in info}
        ended = terminated or truncated
        if ended or seen.issuperset(wanted):
            break
    return seen, ended


def _check_numbers(info: Any, wanted: list[str]) -> None:
    for entry in wanted:
        try:
            info_number(info.get(entry), entry)
        except EnvFault as error:
            raise ValueError(f"evaluation.info: {error}") from error
