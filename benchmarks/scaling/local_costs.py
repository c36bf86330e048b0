"""What one rank does by itself in a generation of Humanoid: env steps, the merge on rank 0, the update."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from es_flipout.rollout import Episodes
from es_flipout.rollout.moments import MomentRecords
from es_flipout.rollout.outcome import Outcome
from es_flipout.run.config import Config, EnvConfig, EvaluationConfig, LoggingConfig, PolicyConfig
from es_flipout.run.digest import digest
from es_flipout.run.metrics import GenerationMetrics, Timing
from es_flipout.run.play_generation import seeds_of
from es_flipout.run.schedules import EpisodeLimitConfig
from es_flipout.run.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
OBSERVATIONS = 348
"""Of Humanoid-v5 with all that it observes."""
POLICIES = {"linear": PolicyConfig(kind="linear"), "mlp": PolicyConfig(kind="mlp", hidden_sizes=[64, 64])}
"""Policies whose update is measured."""
STANDS_STEPS = 40
"""Env steps for which members of the half-trained policy stay up."""


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def outcomes(ranks: int, episodes: int, blocks: int, observations: int) -> list[Outcome]:
    """Returns what ranks would say of episodes that have been dealt out in turn, with random numbers."""
    generator = np.random.default_rng(0)
    parts = []
    for rank in range(ranks):
        rows, mine = np.arange(rank, episodes, ranks), np.arange(rank, blocks, ranks)
        means, m2s = generator.random((2, len(mine), observations))
        moments = MomentRecords(mine, np.full(len(mine), 1000.0), means, m2s) if len(mine) else None
        returns, lengths = generator.random(len(rows)), np.full(len(rows), 1000)
        parts.append(Outcome(rows, returns, lengths, {}, 1000 * len(rows), moments))
    return parts


def merge_seconds(ranks: int, episodes: int, blocks: int, observations: int) -> float:
    """Returns how long rank 0 takes to read what ranks have sent, and to join it."""
    sent = [pickle.dumps(each) for each in outcomes(ranks, episodes, blocks, observations)]
    return timed(lambda: Outcome.joined([pickle.loads(each) for each in sent]))


class Update:
    """What every rank does in a generation besides playing: ask, tell, and the table of all members."""

    def __init__(self, policy: str, members: int) -> None:
        """Makes a run of Humanoid.

        Args:
            policy: see `POLICIES`.
            members: population size.
        """
        config = Config(
            env=EnvConfig(id="Humanoid-v5", num_envs=1),
            policy=POLICIES[policy],
            evaluation=EvaluationConfig(interval=0),
            logging=LoggingConfig(reporters=["jsonl"], histogram_interval=0),
            device="cpu",
            threads=1,
        )
        self._config = replace(config, es=replace(config.es, population_size=members))
        self._trainer = Trainer(self._config)
        self._outcome = Outcome.joined(outcomes(1, members, 1, OBSERVATIONS))

    def __call__(self) -> dict[str, float]:
        """Does it, and returns the seconds by part: `ask`, `tell`, `table`, `digest`."""
        es, config = self._trainer.es, self._config
        marks = {"": time.perf_counter()}

        def mark(name: str) -> None:
            marks[name] = time.perf_counter()

        es.ask()
        mark("ask")
        episodes = Episodes.of_population(seeds_of(config, es.generation, block=0))
        episodes.fill_in(self._outcome)
        fitness = episodes.fitness
        mark("table")
        update = es.tell(fitness)
        self._trainer.policy.normalizer.merge(episodes.observations())
        mark("tell")
        GenerationMetrics.of(es, episodes, fitness, update, 0, None, Timing(0.0, 0.0, 1.0), sigma=es.sigma)
        mark("metrics")
        digest(self._trainer.state_dict())
        mark("digest")
        times = list(marks.values())
        return {
            name: after - before
            for name, before, after in zip(list(marks)[1:], times, times[1:], strict=False)
        }

    def close(self) -> None:
        """Closes the run."""
        self._trainer.close()


def steps(num_envs: int) -> Iterator[float]:
    """Yields the seconds of a step of Humanoid envs on one core, as often as asked; the first warms up.

    The policy is that of `humanoid_half_trained`, so that no episode ends before the limit.
    """
    config = Config(
        env=EnvConfig(id="Humanoid-v5", num_envs=num_envs, kwargs=_kwargs()),
        policy=PolicyConfig(kind="linear", action_bounds="clip"),
        evaluation=EvaluationConfig(interval=0),
        init_from=str(ROOT / "benchmarks/results/humanoid_half_trained/checkpoints/last.pt"),
        device="cpu",
        threads=1,
    )
    rollout = replace(config.rollout, episode_limit=EpisodeLimitConfig(initial=STANDS_STEPS))
    members = max(num_envs, 2)
    config = replace(config, es=replace(config.es, population_size=members, sigma=0.001), rollout=rollout)
    with closing(Trainer(config)) as trainer, torch.no_grad():
        population = trainer.es.ask()
        while True:
            episodes = Episodes.of_population(seeds_of(config, 0, block=0), limit=STANDS_STEPS)
            seconds = timed(lambda: trainer.player.play(population, episodes))  # noqa: B023
            yield seconds * num_envs / episodes.env_steps


def _kwargs() -> dict[str, bool]:
    left_out = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    return {f"include_{name}_in_observation": False for name in left_out}
