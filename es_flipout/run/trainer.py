"""The generation loop: ask, play, tell, score, report, save.

A generation either happens whole or not at all. All that the next one depends on is in the checkpoint, so
a run that is interrupted anywhere continues as if it had not been.

What is done beside the next generations, reports, checkpoints and scores, is in `bookkeeping`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from es_flipout.rollout import BackgroundScorer, Episodes, PlayError, PlayStoppedError, Ranks
from es_flipout.rollout.player import never
from es_flipout.rollout.rank_contract import ALONE
from es_flipout.run import checkpoint
from es_flipout.run.agreement import Agreement
from es_flipout.run.bookkeeping import Bookkeeping
from es_flipout.run.build import flattening, make_policy, make_probe, make_strategy
from es_flipout.run.config import Config
from es_flipout.run.errors import RunError
from es_flipout.run.failure_watch import FailureWatch
from es_flipout.run.info_trial import check_info
from es_flipout.run.journal import Journal
from es_flipout.run.make_player import make_player
from es_flipout.run.metrics import GenerationMetrics, Timing
from es_flipout.run.onlooker import NOBODY, Onlooker
from es_flipout.run.placement import place
from es_flipout.run.play_generation import play_generation
from es_flipout.run.reporters.contract import Reporter
from es_flipout.run.reports import Report, Unscored
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trial import check_device, try_out
from es_flipout.seeding import torch_generator


class Trainer:
    """A run: its environment, policy and strategy, and how far it has come.

    Attributes:
        config: the configuration, with `auto` devices and engines decided.
        es: the strategy, with the policy and the optimizer.
        episode_limit: env steps after which an episode is cut off; None for the environment's own limit.
        env_steps: live env steps since the run began.
        seconds: seconds of training since the run began, interruptions left out.
        update_seconds: seconds of updates by this object.
    """

    def __init__(
        self,
        config: Config,
        *,
        continues: bool = False,
        announce: Callable[[str], None] = lambda line: None,
        ranks: Ranks = ALONE,
        publish: Callable[[Config], None] = lambda config: None,
        onlooker: Onlooker = NOBODY,
    ) -> None:
        """Builds everything and writes nothing.

        Args:
            config: of the run; with `auto` devices and engines decided, on ranks other than 0.
            announce: is told where the run takes place, and why, before anything that takes long.
            continues: whether `restore` or `synchronize` will load a state of this run: `config.init_from` is
                not read.
            ranks: of the run; `train` needs them connected.
            publish: is told the configuration, with `auto` devices and engines decided.
            onlooker: is told what takes long, and how far each generation is.

        Raises:
            ValueError: if the environment, the policy or the optimizer cannot be made as configured.
            RunError: if the policy cannot begin as that of `config.init_from`.
        """
        self._agreement, self._onlooker, self._num_ranks = Agreement(ranks), onlooker, ranks.size
        self.config = config = place(config, announce)
        publish(config)
        check_device(config.device)
        env = make_probe(config)
        if config.rollout.action_noise:
            from es_flipout.rollout.action_noise import check_action_noise  # which imports numba

            check_action_noise(env.single_action_space)
        self.policy = make_policy(
            config.policy,
            env.single_observation_space,
            env.single_action_space,
            torch_generator(config.seed, 0, "policy"),
        ).to(config.device)
        if config.init_from is not None and not continues:
            checkpoint.begin_with(self.policy, Path(config.init_from).expanduser())
        self.es = make_strategy(config, self.policy, ranks.compute_tiles)
        try:
            try_out(self.es, env, config.env.id)
        except PlayError as error:
            raise ValueError(str(error)) from error
        check_info(config, announce)
        if line := flattening(config.env.id, env.single_observation_space, self.policy):
            announce(line)
        self._watch = FailureWatch(config.env.id, env.default_limit)
        if env.default_limit is not None:
            announce(
                f"{config.env.id} has no time limit: its episodes are cut off after {env.default_limit:,} "
                "env steps (env.kwargs.max_episode_steps sets another limit, -1 none)"
            )
        env.close()
        self._books = Bookkeeping(config, self.policy, scores=self._agreement.leads, onlooker=onlooker)
        self.player = make_player(config, self.policy, announce, ranks, onlooker)
        self.episode_limit = config.rollout.episode_limit.initial
        self.env_steps = 0
        self.seconds = self.update_seconds = 0.0
        self._is_last = False  # whether the generation that runs is the last of the call
        self._was_scored = False  # whether the center of the generation before is scored

    @property
    def progress(self) -> float:
        """Used share of the budget, in [0, 1]; 0 for a run without a limit."""
        return self.config.progress(self.es.generation, self.env_steps)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up and all that came of it has been reported."""
        return self.progress >= 1.0 and not self.awaits_score

    @property
    def scorer(self) -> BackgroundScorer:
        """Scores the center."""
        return self._books.scorer

    @property
    def best_score(self) -> float:
        """Highest center score so far; minus infinity before the first."""
        return self._books.best_score

    @property
    def awaits_score(self) -> bool:
        """Whether generations have not been reported yet, because the center of the first is being scored."""
        return self._books.unscored is not None

    @property
    def reported_env_steps(self) -> int:
        """A number of env steps at or after the last report and before the next."""
        unscored = self._books.unscored
        return self.env_steps if unscored is None else unscored.metrics.env_steps - 1

    def train(
        self,
        run: RunDirectory | None,
        reporters: Sequence[Reporter] = (),
        should_stop: Callable[[], bool] = never,
        *,
        max_generations: float = math.inf,
    ) -> None:
        """Runs generations until the budget is used up or `should_stop` says so, then saves.

        A generation under way when the run is stopped is dropped; a resumed run repeats it. A score under way
        is dropped too; what waits for it is saved, and a resumed run reports it.

        Args:
            run: where checkpoints go; None on ranks other than 0, which write nothing.
            reporters: what gets the figures of each generation.
            should_stop: asked several times a second. If any rank is asked to stop, all do.
            max_generations: how many generations this call runs at most.

        Raises:
            RunBrokenError: if the run cannot go on.
        """
        journal = Journal(self.config, run, reporters)
        last = self.es.generation + max_generations
        # Several ranks stop together, and decide that while they play.
        asked = never if self._agreement.is_needed else should_stop
        stopped = False
        try:
            while self.progress < 1.0 and self.es.generation < last and not (stopped := asked()):
                self._is_last = self.es.generation + 1 >= last
                self._run_generation(journal, should_stop)
            if not stopped:
                self._books.report_scored(journal, should_stop)
        except PlayStoppedError:
            pass
        finally:
            self._books.record_last()
        self._save_unsaved(journal)

    def _save_unsaved(self, journal: Journal) -> None:
        """Saves the state of the run, if that has not been done."""
        if self._books.saved_generation != self.es.generation and not self._books.is_doubtful:
            self._books.save_last(journal, self.state_dict())

    def _run_generation(self, journal: Journal, should_stop: Callable[[], bool]) -> None:
        started = time.perf_counter()
        self._apply_schedules()
        alive_bonus = self.config.rollout.alive_bonus_at(self.progress)
        try:
            episodes = play_generation(
                self.config,
                self.es,
                self.player,
                self._watch,
                limit=self.episode_limit,
                is_last=self._is_last,
                should_stop=should_stop,
                meanwhile=partial(self._books.catch_up, journal, should_stop),
                onlooker=self._onlooker,
                num_ranks=self._num_ranks,
            )
        except RunError:
            if journal.has_failed:
                raise
            with contextlib.suppress(PlayStoppedError):  # the error is the reason to stop
                self._books.report_scored(journal, should_stop)
            self._save_unsaved(journal)
            raise
        elapsed = time.perf_counter() - started
        env_steps = self.env_steps + episodes.env_steps
        is_scored = self._is_due(self.config.evaluation.interval, self.es.generation + 1, env_steps)
        self._report_scored(journal, should_stop, wait=is_scored)
        # From here on nothing is interrupted before the generation is whole.
        told = time.perf_counter()
        fitness = episodes.fitness_without(alive_bonus)
        sigma = self.es.mean_sigma
        with self._agreement.errors():
            update = self.es.tell(fitness, signal_to_noise=self.config.logging.signal_to_noise)
        normalizer = getattr(self.policy, "normalizer", None)
        if normalizer is not None:
            normalizer.merge(episodes.observations())
        limit, self.episode_limit = self.episode_limit, self._next_limit(episodes)
        self.env_steps = env_steps
        updated = time.perf_counter() - told
        elapsed, self.update_seconds = elapsed + updated, self.update_seconds + updated
        self.seconds += time.perf_counter() - started
        timing = Timing(episodes.env_steps / elapsed, self.seconds, episodes.live_share)
        metrics = GenerationMetrics.of(
            self.es, episodes, fitness, update, self.env_steps, limit, timing, sigma=sigma
        )
        report = Report(metrics, self._histograms(episodes, fitness) if self._agreement.leads else {})
        is_saved = self._is_now_due(self.config.logging.checkpoint_interval)
        is_kept = is_scored or self._is_now_due(self.config.logging.keep_interval)
        # A copy: the schedules change sigma and learning rate before the next generation.
        state = self.state_dict() if is_saved or is_kept or self._agreement.is_needed else {}
        report.state = state if is_kept else None
        self._agreement.begin_comparison(state)
        self._was_scored = is_scored
        self._books.take(
            journal,
            report,
            is_scored=is_scored and self._agreement.leads,
            state=state if is_saved else None,
            confirm=self._agreement.confirm,
        )

    def _report_scored(self, journal: Journal, should_stop: Callable[[], bool], *, wait: bool) -> None:
        """Reports generations whose score is there; if that may take long, all ranks wait for rank 0."""
        report = partial(self._books.report_scored, journal, wait=wait)
        if self._agreement.is_needed and (wait or self._was_scored):
            self._agreement.stop_together(report, should_stop)
        else:
            report(should_stop)

    def _histograms(self, episodes: Episodes, fitness: Tensor) -> dict[str, Tensor]:
        """Returns copies of the values of which this generation shows the distribution, by name."""
        if not self._is_now_due(self.config.logging.histogram_interval):
            return {}
        parameters = self.policy.named_parameters()
        return {
            "fitness": fitness,
            "episode_length": torch.from_numpy(episodes.lengths),
            **{f"parameters/{name}": each.detach().cpu().clone() for name, each in parameters},
            **{f"sigma/{name}": self.es.sigma * each.cpu() for name, each in self.es.sigma_scales.items()},
        }

    def _apply_schedules(self) -> None:
        config = self.config
        self.es.sigma = config.es.sigma_schedule.value(config.es.sigma, self.progress)
        for group in self.es.optimizer.param_groups:
            group["lr"] = config.optimizer.lr_schedule.value(config.optimizer.lr, self.progress)

    def _next_limit(self, episodes: Episodes) -> int | None:
        if self.episode_limit is None:
            return None
        reached = (episodes.lengths >= self.episode_limit).mean()
        return self.config.rollout.episode_limit.next(self.episode_limit, float(reached))

    def _is_due(self, interval: int, generation: int, env_steps: int) -> bool:
        """Whether something is due in a generation: every so many, never for 0, and in the last one."""
        is_last = self.config.progress(generation, env_steps) >= 1.0
        return interval > 0 and (generation % interval == 0 or is_last)

    def _is_now_due(self, interval: int) -> bool:
        return self._is_due(interval, self.es.generation, self.env_steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, besides the configuration."""
        return {
            **self.es.state_dict(),
            "episode_limit": self.episode_limit,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "best_score": self.best_score,
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.es.load_state_dict(dict(state))
        self.episode_limit = state["episode_limit"]
        self.env_steps = state["env_steps"]
        self.seconds = state["seconds"]
        self._books.best_score = state["best_score"]

    def restore(self, run: RunDirectory) -> None:
        """Continues from the run's last checkpoint, or from the start if it has none yet.

        Raises:
            RunError: if the checkpoint cannot be used.
        """
        generation = 0
        if run.last.exists():
            state = checkpoint.load(run.last, self.config.device)
            waiting = state.pop("unscored", None)
            checkpoint.check_policy(self.policy, state, run.last)
            try:
                self._load_state_dict(state)
                unscored = waiting and Unscored.of(waiting, state)
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise RunError(f"checkpoint {run.last} does not fit the run's config: {error}") from error
            self._books.restore(unscored)
            generation = self.es.generation if unscored is None else unscored.metrics.generation - 1
        run.truncate_metrics(generation)

    def synchronize(self) -> None:
        """Gives all ranks, which must be connected, the state of rank 0.

        Raises:
            RunBrokenError: if rank 0 has died.
        """
        if self._agreement.is_needed:
            state = self._agreement.share(self.state_dict())
            if not self._agreement.leads:
                self._load_state_dict(state)
        self._was_scored = True  # a run that continues may wait for a score

    def wait_for_ranks(self) -> None:
        """Waits until all ranks have come to this point; see `Agreement.wait`."""
        self._agreement.wait()

    def close(self) -> None:
        """Closes the environments and ends their threads and processes."""
        self.player.close()
        self._books.close()
