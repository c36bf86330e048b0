"""What is left to do of generations that are whole: reports, checkpoints, and the scores of their centers.

A generation is recorded while the next is played, so that workers do not wait for it.

The center is scored beside the next generations. Until its score is there, they are not reported: all figures
wait, also in checkpoints, for reports are in order. Only the next generation to be scored waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from es_flipout.perturbations import copy_module
from es_flipout.processes import prepare_processes
from es_flipout.rollout import PlayError
from es_flipout.rollout.player import nothing
from es_flipout.run.build import make_background_scorer
from es_flipout.run.config import Config
from es_flipout.run.errors import RunBrokenError
from es_flipout.run.journal import Journal
from es_flipout.run.onlooker import NOBODY, Onlooker
from es_flipout.run.reports import Report, Unscored


class Bookkeeping:
    """Records the generations of a run, in order, and has their centers scored.

    Attributes:
        scorer: scores the center.
        best_score: highest score so far; minus infinity before the first.
        saved_generation: that of the last checkpoint, if all that has been reported is in it, too; else -1.
        is_doubtful: whether the last generation could not be confirmed; its state must not be saved.
    """

    def __init__(
        self, config: Config, policy: nn.Module, *, scores: bool = True, onlooker: Onlooker = NOBODY
    ) -> None:
        """Starts no score yet.

        Args:
            config: of the run.
            policy: its center, which changes from generation to generation.
            scores: whether processes are to be prepared for scores.
            onlooker: is told when a score is waited for.

        Raises:
            ValueError: if the official environment cannot be made.
        """
        self._config, self._policy, self._onlooker = config, policy, onlooker
        self.scorer = make_background_scorer(config)
        if scores and config.evaluation.interval:
            prepare_processes()
        self.best_score = float("-inf")
        self.saved_generation = -1
        self.is_doubtful = False
        self._unscored: Unscored | None = None
        self._record: Callable[[], None] = nothing  # records the last generation

    @property
    def unscored(self) -> Unscored | None:
        """The generation whose center is being scored, and those that wait for it; None if there is none."""
        return self._unscored

    def take(
        self,
        journal: Journal,
        report: Report,
        *,
        is_scored: bool,
        state: dict[str, Any] | None,
        confirm: Callable[[], None] = nothing,
    ) -> None:
        """Takes a generation that is whole, to be recorded before the policy changes again.

        Args:
            journal: reports it.
            report: of the generation.
            is_scored: whether its center is to be scored.
            state: of the run after it, if that is to be saved.
            confirm: called before anything is recorded; if it raises, nothing is.
        """
        self._record = partial(self._record_now, journal, report, is_scored, state, confirm)

    def _record_now(
        self,
        journal: Journal,
        report: Report,
        is_scored: bool,
        state: dict[str, Any] | None,
        confirm: Callable[[], None],
    ) -> None:
        """Reports a generation, or has the report wait for a score, and saves the state after it."""
        self.is_doubtful = True
        confirm()
        self.is_doubtful = False
        if is_scored:
            self._unscored = Unscored(report)
        elif self._unscored is not None:
            self._unscored.later.append(report)
        else:
            journal.report(report)
        if is_scored:
            self._start_score()
        if state is not None:
            self.save_last(journal, state)

    def record_last(self) -> None:
        """Records the last generation, if that has not been done."""
        record, self._record = self._record, nothing
        record()

    def save_last(self, journal: Journal, state: Mapping[str, Any]) -> None:
        """Saves a state of the run, and what waits for a score."""
        waiting = {} if self._unscored is None else {"unscored": self._unscored.saved()}
        journal.save_last({**state, **waiting})
        self.saved_generation = state["generation"]

    def restore(self, unscored: Unscored | None) -> None:
        """Takes what waited for a score when the run was saved, and begins that score."""
        self._unscored = unscored
        if unscored is not None:
            self._start_score()

    def _start_score(self) -> None:
        unscored = self._unscored
        assert unscored is not None
        metrics, policy = unscored.metrics, self._policy
        if unscored.later:  # of a run that continues: the policy has changed since
            policy = copy_module(policy)
            policy.load_state_dict(unscored.state["policy"])
        # The last score of a run is the official environment's, whatever equals it.
        is_last = self._config.progress(metrics.generation, metrics.env_steps) >= 1.0
        self.scorer.start(policy, self._config.evaluation.seed, official=is_last)

    def catch_up(self, journal: Journal, should_stop: Callable[[], bool]) -> None:
        """Does beside a generation what is left of those before it, as far as nobody waits for that."""
        self.record_last()
        if self.scorer.is_beside:
            self.report_scored(journal, should_stop, wait=False)

    def report_scored(self, journal: Journal, should_stop: Callable[[], bool], *, wait: bool = True) -> None:
        """Records the last generation, then reports those that wait for a score, if there are any.

        Args:
            journal: reports them.
            should_stop: asked several times a second.
            wait: whether to wait for a score that is not there yet.

        Raises:
            PlayStoppedError: if `should_stop` said so.
            RunBrokenError: if the center cannot be scored, or anything cannot be written.
        """
        self.record_last()
        unscored = self._unscored
        if unscored is None or not (wait or self.scorer.is_ready):
            return
        waiting = self._onlooker.doing(f"waiting for the score of generation {unscored.metrics.generation}")
        try:
            with waiting:
                episodes = self.scorer.result(should_stop)
        except PlayError as error:
            raise RunBrokenError(str(error)) from error
        self._unscored, self.saved_generation = None, -1
        score = episodes.mean_return
        is_best = score > self.best_score
        if is_best:
            self.best_score = score
        for report in unscored.reports(episodes, self.best_score):
            journal.report(report)
        if is_best:
            journal.save_best({**unscored.state, "best_score": self.best_score})

    def close(self) -> None:
        """Gives up a score that is under way, and ends its process."""
        self.scorer.close()
