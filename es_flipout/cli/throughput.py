"""How fast a population is played in its environment: process pool, one batch, everything on a GPU.

Each contestant is a `Trainer` on the same configuration, except for what does the work, and runs generation 0
again and again: the same members from the same reset seeds. Whole generations count: ask, episodes,
statistics, update; no scoring, no reports. Those on engine warp have a number of envs and of members of their
own, and their engine is measured by itself as well.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.mujoco.start import StartBatch
from es_flipout.envs.native import cpu_engine_of, native_maker, runs_natively
from es_flipout.rollout import Ranks
from es_flipout.rollout.rank_contract import ALONE, RankTimes
from es_flipout.run.build import num_threads
from es_flipout.run.config import Config, EvaluationConfig, LoggingConfig
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer

ONE_WORKER, ONE_RANK = "process pool, 1 worker", "1 rank"
ENV_STEPS, MEMBERS, PHYSICS = "env steps/s", "members/s", "physics alone, env steps/s"
WAITING, GATHERING, UPDATING = "waiting, ms", "gathering, ms", "updating, ms"
"""Metrics of ranks: milliseconds of a generation, the first as a mean over the ranks."""
PER_GENERATION, MEMORY = "env steps per generation", "GPU memory, bytes"
"""Metrics; the last two are the same in every round and have a row in the first one only."""
STEPS_PER_LOOK = 16
"""Env steps of an engine by itself between two looks at the clock."""


@dataclass(frozen=True)
class Contestant:
    """A configuration, and the CPU cores that it keeps busy, on each of its ranks."""

    config: Config
    cores: int
    ranks: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """What distinguishes it from the others, for the conditions of the results."""
        config = self.config
        return {
            "cores": self.cores,
            "workers": config.threads if config.backend == "process_pool" else None,
            "ranks": self.ranks,
            "device": config.device,
            "num_envs": config.env.num_envs,
            "population_size": config.es.population_size,
        }


def contestants(
    config: Config,
    workers: Iterable[int],
    cores: int,
    *,
    gpu: str | None = None,
    warp_envs: Iterable[int] = (),
    warp_members_per_env: int = 4,
    warp_device: str = "cuda",
) -> dict[str, Contestant]:
    """Returns all contestants by name.

    Args:
        config: what they have in common.
        workers: sizes of the process pool; a pool of one is always among them, the unit of the others.
        cores: threads of the vectorized ones.
        gpu: device of a policy whose environments are on the CPU; None for no such contestant.
        warp_envs: numbers of envs of those on engine warp.
        warp_members_per_env: their members divided by that.
        warp_device: their device.
    """
    common = _quiet(config)
    found = {}
    for size in sorted({1, *workers}):
        name = ONE_WORKER if size == 1 else f"process pool, {size} workers"
        found[name] = Contestant(replace(common, backend="process_pool", threads=size), size)
    found["vectorized"] = Contestant(replace(common, threads=cores), cores)
    env = config.env
    if gpu is not None:
        on_cpu = cpu_engine_of(env.id, **env.kwargs) if runs_natively(env.id, env.engine) else env.engine
        beside = replace(common, threads=cores, device=gpu, env=replace(env, engine=on_cpu))
        found["vectorized, policy on the GPU"] = Contestant(beside, cores)
    for size in warp_envs:
        own_env = replace(env, engine="warp", num_envs=size)
        es = replace(config.es, population_size=size * warp_members_per_env)
        place = "CPU, by mujoco_warp" if warp_device == "cpu" else "GPU"
        own = replace(common, device=warp_device, env=own_env, es=es)
        found[f"everything on the {place}, {size:,} envs"] = Contestant(own, 1)
    return found


def rank_contestants(config: Config, sizes: Iterable[int], ranks: Ranks) -> dict[str, Contestant]:
    """Returns the contestants that are numbers of ranks, by name.

    Args:
        config: what they have in common.
        sizes: numbers of ranks; 1 is always among them, the unit of the others.
        ranks: all that there are.
    """
    common, cores = _quiet(config), num_threads(config, ranks)
    return {
        ONE_RANK if size == 1 else f"{size} ranks": Contestant(common, cores, size)
        for size in sorted({1, *sizes})
    }


def _quiet(config: Config) -> Config:
    quiet = LoggingConfig(reporters=[], histogram_interval=0)
    return replace(config, evaluation=EvaluationConfig(interval=0), logging=quiet)


class PhysicsAlone:
    """Engine warp with all its envs live and under random controls: the bound of a generation on the device.

    All envs are put back to a start as often as episodes are: humanoids that lie on the ground have more
    contacts, and are slower, than those that walk.
    """

    def __init__(self, config: Config, episode_length: int) -> None:
        env = config.env
        make = partial(native_maker(env.id, **env.kwargs), engine="warp", engine_kwargs=env.engine_kwargs)
        self._env = make(env.num_envs, device=config.device, info=False)
        assert isinstance(self._env.engine, WarpEngine)
        self._engine = self._env.engine
        self._engine.compile(self._env.task.frame_skip)
        drawn = StartBatch.of([self._env.checked_task.seeded_start(seed) for seed in range(env.num_envs)])
        self._starts = [
            torch.from_numpy(each).float().to(self._engine.device) for each in (drawn.qpos, drawn.qvel)
        ]
        self._everyone = torch.ones(env.num_envs, dtype=torch.bool, device=self._engine.device)
        low, high = torch.from_numpy(self._env.task.model.actuator_ctrlrange).float().unbind(dim=1)
        random = torch.rand(16, *self._engine.ctrl.shape, generator=torch.Generator().manual_seed(0))
        self._controls = torch.lerp(low, high, random).to(self._engine.device)
        self._episode_length, self._steps = episode_length, 0
        self.close = self._env.close

    def env_steps_per_second(self, least_seconds: float) -> float:
        """Steps for about so many seconds."""
        done = 0
        self._wait()
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < least_seconds or not done:
            for _ in range(STEPS_PER_LOOK):
                if self._steps % self._episode_length == 0:
                    qpos, qvel = self._starts
                    self._engine.restart(self._everyone, qpos, qvel)
                self._engine.ctrl.copy_(self._controls[self._steps % len(self._controls)])
                self._engine.advance(self._env.task.frame_skip)
                self._steps += 1
            done += STEPS_PER_LOOK
            self._wait()
        return done * self._env.num_envs / seconds

    def _wait(self) -> None:
        torch.get_device_module(self._engine.device).synchronize(self._engine.device)


class FirstGeneration:
    """Runs generation 0 of a configuration, from the same state each time; on all its ranks at once.

    Attributes:
        once: metrics that are the same in every round.
    """

    def __init__(self, config: Config, ranks: Ranks = ALONE) -> None:
        """Builds the run, and runs its first generation once to warm up.

        Args:
            config: of the run.
            ranks: that do it, connected.

        Raises:
            ValueError: if it cannot be run as configured.
        """
        before = _gpu_memory()
        self._size, self._ranks = config.es.population_size, ranks
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._start, self._run = RunDirectory(folder / "start"), RunDirectory(folder / "run")
            for run in (self._start, self._run):
                run.checkpoints.mkdir(parents=True)
            self._trainer = stack.enter_context(closing(Trainer(config, ranks=ranks)))
            if ranks.rank == 0:
                self._trainer.train(self._start, max_generations=0)  # saves the state that it has now
            self._generation()
            steps = self._trainer.env_steps
            self.once = {PER_GENERATION: steps, MEMORY: _gpu_memory() - before}
            self._physics = None
            if config.env.engine == "warp":
                physics = PhysicsAlone(config, max(steps // self._size, 1))
                self._physics = stack.enter_context(closing(physics))
            self.close = stack.pop_all().close

    def _generation(self) -> float:
        if self._ranks.rank == 0:
            self._trainer.restore(self._start)
        self._trainer.synchronize()
        self._trainer.train(self._run if self._ranks.rank == 0 else None, max_generations=1)
        return self._trainer.seconds

    def measure(self, least_seconds: float) -> dict[str, float]:
        """Runs it for about so many seconds, and at least once; returns rates by metric."""
        seconds, steps, generations = 0.0, 0, 0
        times = self._ranks.times = RankTimes()
        updated = self._trainer.update_seconds
        while self._goes_on(seconds < least_seconds or not generations):
            seconds += self._generation()
            steps += self._trainer.env_steps
            generations += 1
        rates = {ENV_STEPS: steps / seconds, MEMBERS: generations * self._size / seconds}
        updated = self._trainer.update_seconds - updated
        spent = {WAITING: times.waiting, GATHERING: times.gathering, UPDATING: updated}
        rates |= {name: value / generations * 1e3 for name, value in spent.items()}
        if self._physics is not None:
            rates[PHYSICS] = self._physics.env_steps_per_second(least_seconds)
        return rates

    def _goes_on(self, wanted: bool) -> bool:
        """Returns whether rank 0 wants another generation."""
        return self._ranks.together(lambda: wanted, lambda wishes: wishes[0])


def _gpu_memory() -> int:
    """Returns the bytes of GPU memory in use, by all processes; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free
