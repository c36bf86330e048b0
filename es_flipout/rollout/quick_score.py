"""Scores in an environment that is quick, and in the official one wherever that has to judge."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from es_flipout.error_text import error_text
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.player import PlayError, never
from es_flipout.rollout.score import Scorer

MakeScorer = Callable[[], Scorer]


class ScorerNotMadeError(PlayError):
    """The environments of a scorer cannot be made; the message says why."""


class QuickScorer:
    """Gives the scores of the official environment, most of them without playing in it.

    The quick environment must equal it to the last bit in every episode that does not fail. What fails may
    differ: MuJoCo's warnings end an episode in a native environment and pass unnoticed in Gymnasium's.
    So a score in which an episode failed is repeated in the official environment. Each environment is made
    when it is first needed.

    A task with a randomization is scored twice, with the same seeds: as it is, and randomized.
    """

    def __init__(
        self,
        make_official: MakeScorer,
        make_quick: MakeScorer | None = None,
        make_randomized: MakeScorer | None = None,
    ) -> None:
        """Makes nothing yet.

        Args:
            make_official: makes what scores in the official environment.
            make_quick: makes what scores in an equal environment; None if there is none.
            make_randomized: makes what scores in a randomized environment; None if there is none.
        """
        self._make_official, self._make_quick = make_official, make_quick
        self._make_randomized = make_randomized
        self._randomized: Scorer | None = None
        self._official: Scorer | None = None
        self._quick: Scorer | None = None

    def score(
        self,
        policy: nn.Module,
        *,
        seed: int,
        official: bool = False,
        should_stop: Callable[[], bool] = never,
    ) -> Episodes:
        """Scores a policy; see `Scorer.score`.

        Args:
            policy: see `Scorer.score`.
            seed: see `Scorer.score`.
            official: whether the official environment itself must be played in.
            should_stop: see `Scorer.score`.

        Returns:
            The episodes, with those that were randomized as their `randomized`.

        Raises:
            PlayStoppedError: if `should_stop` said so.
            ScorerNotMadeError: if the environment cannot be made.
        """
        episodes = self._nominal(policy, seed, official, should_stop)
        if self._make_randomized is not None:
            self._randomized = self._randomized or _made(self._make_randomized)
            episodes.randomized = self._randomized.score(policy, seed=seed, should_stop=should_stop)
        return episodes

    def _nominal(
        self, policy: nn.Module, seed: int, official: bool, should_stop: Callable[[], bool]
    ) -> Episodes:
        if self._make_quick is not None and not official:
            self._quick = self._quick or _made(self._make_quick)
            episodes = self._quick.score(policy, seed=seed, should_stop=should_stop)
            if not episodes.faults:
                return episodes
        self._official = self._official or _made(self._make_official)
        return self._official.score(policy, seed=seed, should_stop=should_stop)

    def close(self) -> None:
        """Closes the environments."""
        for scorer in (self._quick, self._official, self._randomized):
            if scorer is not None:
                scorer.close()


def _made(make: MakeScorer) -> Scorer:
    try:
        return make()
    except Exception as error:  # whatever a user's environment may raise
        raise ScorerNotMadeError(error_text(error)) from error
