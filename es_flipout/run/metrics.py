"""The metrics of a generation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from es_flipout.fitness import failed
from es_flipout.rollout import Episodes
from es_flipout.strategy import FlipoutES
from es_flipout.update import Update


@dataclass(frozen=True)
class GenerationMetrics:
    """The metrics of one generation. All but `timing` are the same whenever the run is repeated."""

    generation: int
    """Generations finished, this one included."""
    env_steps: int
    """Live env steps since the run began."""
    fitness_mean: float
    """Mean fitness of the members that did not fail: their return minus the alive bonus per step."""
    fitness_best: float
    """Highest fitness."""
    fitness_worst: float
    """Lowest fitness."""
    fitness_std: float
    """Standard deviation of the fitness."""
    failed_members: int
    """Members without a finite return; they rank worst."""
    failures: dict[str, int]
    """What went wrong, and in how many episodes, most frequent first."""
    episode_length: float
    """Mean env steps per episode."""
    episode_limit: int | None
    """Adaptive limit on the length of an episode, in env steps; None without one."""
    sigma: float
    """Standard deviation of the perturbation, the root mean square over all weights if each has its own."""
    lr: float
    """Learning rate."""
    gradient_norm: float
    """Euclidean norm of the gradient estimate."""
    update_norm: float
    """Euclidean norm of the step that the optimizer took."""
    parameter_norm: float
    """Euclidean norm of the parameters after that step."""
    update_ratio: float
    """Norm of that step over the norm of the parameters before it."""
    update_cosine: float
    """Cosine between that step and the previous one; NaN for the first."""
    tied_fraction: float
    """Share of the members with the same fitness as another member."""
    signal_to_noise: float | None
    """Squared norm of the expected gradient over the variance of its estimate, if logging.signal_to_noise."""
    score: float | None
    """Mean return of the center in the official Gymnasium environment, or in native envs that equal it; None
    if it was not scored."""
    score_std: float | None
    """Standard deviation over the episodes of the score."""
    score_episode_length: float | None
    """Mean length of the episodes of the score, in env steps."""
    timing: Timing
    """Speed and duration."""
    score_failures: dict[str, int] = field(default_factory=dict)
    """What went wrong in episodes of the score, and in how many; they are left out of it."""
    score_randomized: float | None = None
    """Mean return of the center in randomized episodes from the same reset seeds, if the task has a
    randomization and env.randomize is true."""
    score_info: dict[str, float] = field(default_factory=dict)
    """The metrics of evaluation.info, by name; NaN for what no episode of the score had."""

    @classmethod
    def of(
        cls,
        es: FlipoutES,
        episodes: Episodes,
        fitness: Tensor,
        update: Update,
        env_steps: int,
        episode_limit: int | None,
        timing: Timing,
        *,
        sigma: float,
    ) -> GenerationMetrics:
        """Returns the figures of a generation whose center has not been scored.

        Args:
            es: the strategy, which has been told the fitness.
            episodes: of all members.
            fitness: of all members, [P].
            update: what `tell` returned.
            env_steps: since the run began.
            episode_limit: env steps after which an episode was cut off.
            timing: how long it took.
            sigma: mean sigma of its population.
        """
        bad = failed(fitness)
        usable = fitness[~bad] if not bad.all() else fitness
        return cls(
            generation=es.generation,
            env_steps=env_steps,
            fitness_mean=float(usable.mean()),
            fitness_best=float(usable.max()),
            fitness_worst=float(usable.min()),
            fitness_std=float(usable.std(correction=0)),
            failed_members=int(bad.sum()),
            failures=dict(episodes.failures),
            episode_length=float(episodes.lengths.mean()),
            episode_limit=episode_limit,
            sigma=sigma,
            lr=es.optimizer.param_groups[0]["lr"],
            **asdict(update),
            score=None,
            score_std=None,
            score_episode_length=None,
            timing=timing,
        )

    def as_json(self) -> str:
        """Returns one line of JSON; numbers that are not finite become null."""

        def plain(value: object) -> object:
            if isinstance(value, dict):
                return {name: plain(each) for name, each in value.items()}
            return None if isinstance(value, float) and not math.isfinite(value) else value

        figures = {name: plain(value) for name, value in asdict(self).items()}
        return json.dumps(figures)

    @classmethod
    def of_json(cls, figures: Mapping[str, Any]) -> GenerationMetrics:
        """Returns the metrics that a line of metrics.jsonl holds, as `RunDirectory.read_metrics` gives it.

        What was not a finite number is None, as is what an earlier version did not write.
        """
        known: dict[str, Any] = {each.name: None for each in fields(cls) if each.default_factory is MISSING}
        known |= figures
        return cls(**{**known, "timing": Timing(**known["timing"])})

    def scored(self, episodes: Episodes) -> GenerationMetrics:
        """Returns the metrics completed by the center's score."""
        return replace(
            self,
            score=episodes.mean_return,
            score_std=episodes.std_return,
            score_episode_length=float(episodes.lengths.mean()),
            score_failures=dict(episodes.failures),
            score_randomized=None if episodes.randomized is None else episodes.randomized.mean_return,
            score_info=episodes.info_means,
        )


@dataclass(frozen=True)
class Timing:
    """Wall-clock measurements of a generation, which differ from run to run."""

    env_steps_per_second: float
    """Live env steps per second of rollouts and update. On the same cores, the generation before is reported
    and saved meanwhile, and an earlier one may be scored."""
    seconds: float
    """Seconds of training since the run began, without interruptions and the wait for the last score."""
    live_share: float
    """Share of the env steps computed that advanced an episode. Workers take episodes as they become free, so
    it varies a little."""
