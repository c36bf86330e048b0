"""Ends a run from which nothing can be learned: that every episode fails is no accident of single members."""

from __future__ import annotations

from es_flipout.rollout import Episodes
from es_flipout.run.checkpoint import RunBrokenError, RunError

HOPELESS = 3
"""Populations in a row of which every episode failed, after which a run ends."""


class FailureWatch:
    """Looks at the episodes of one population after the other."""

    def __init__(self, env_id: str, default_limit: int | None) -> None:
        """Takes what is known about the environment.

        Args:
            env_id: its id.
            default_limit: env steps after which episodes are cut off because it has no time limit; None if it
                has one.
        """
        self._env_id, self._default_limit = env_id, default_limit
        self._failed_in_a_row = 0

    def check(self, episodes: Episodes, generation: int) -> None:
        """Checks the episodes of a population.

        Raises:
            RunBrokenError: if no episode could start, or every episode failed, in its first step or for
                `HOPELESS` populations in a row.
            RunError: if no episode of the first generation ended, and the environment has no time limit.
        """
        failures = episodes.failures.most_common(1)
        reason = failures[0][0] if failures else "every episode was empty"
        if episodes.env_steps == 0:
            raise RunBrokenError(f"no episode of generation {generation} could start: {reason}")
        all_failed = len(episodes.faults) == len(episodes)
        self._failed_in_a_row = self._failed_in_a_row + 1 if all_failed else 0
        every = f"every episode of generation {generation} failed"
        if all_failed and episodes.lengths.max() <= 1:
            raise RunBrokenError(f"{every} in its first step: {reason}")
        if self._failed_in_a_row == HOPELESS:
            raise RunBrokenError(f"{every}, as in the {HOPELESS - 1} populations before: {reason}")
        limit = self._default_limit
        if generation == 1 and limit is not None and (episodes.lengths >= limit).all():
            raise RunError(  # of the configuration, which a resumed run keeps
                f"{self._env_id} has no time limit, and no episode ended within {limit:,} env steps: set "
                "env.kwargs.max_episode_steps"
            )
