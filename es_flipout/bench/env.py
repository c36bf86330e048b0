"""How fast an environment is stepped: raw physics, natively, by Gymnasium, and by the training loop."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from es_flipout.bench.replay import PhysicsCalls
from es_flipout.bench.report import Contestant, Figures, Ratio, Watch, interleave
from es_flipout.bench.training import record_physics, training
from es_flipout.envs import MujocoVectorEnv, make_env, make_vec
from es_flipout.processes import available_cores
from es_flipout.run.config import Config

WARMUP_STEPS = 3
RAW_RANDOM = "raw physics, random actions"
NATIVE = "native vector environment"
SYNC = "Gymnasium SyncVectorEnv"
ASYNC = "Gymnasium AsyncVectorEnv"
ASYNC_1 = "Gymnasium AsyncVectorEnv, 1 row a core"
ASYNC_8 = "Gymnasium AsyncVectorEnv, 8 rows a core"
RAW_POLICY = "raw physics, the policies' actions"
LOOP = "training loop"
RATIOS: dict[str, Ratio] = {
    "native vector environment / its raw physics": lambda rates: rates[NATIVE] / rates[RAW_RANDOM],
    "training loop / its raw physics": lambda rates: rates[LOOP] / rates[RAW_POLICY],
    "training loop / raw physics under random actions": lambda rates: rates[LOOP] / rates[RAW_RANDOM],
    "native vector environment / best of Gymnasium's": lambda rates: (
        rates[NATIVE] / max(rates[name] for name in (SYNC, ASYNC, ASYNC_1, ASYNC_8))
    ),
}
"""What is to be read off a round, by name."""


@dataclass(frozen=True)
class Rate:
    """Live env steps, and the seconds that they took."""

    env_steps: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Live env steps a second."""
        return self.env_steps / self.seconds


def measure_native(config: Config, seconds: float, seed: int) -> tuple[Rate, Rate]:
    """Measures the native vector environment under uniform random actions, then the raw physics of it.

    Ended rows are reset at once. The environment returns no info, as in training. The raw physics is
    `mujoco.batch` repeating the very same steps and resets, without observations, rewards or contact forces
    on bodies.

    Returns:
        The rates of the environment and of its raw physics.
    """
    with closing(_make_native(config, config.env.num_envs)) as env:
        calls = PhysicsCalls.record(env.engine)
        low, high = torch.from_numpy(env.task.model.actuator_ctrlrange).float().unbind(dim=1)
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        env.reset(seed=seed)
        while not calls.steps or time.perf_counter() - start < seconds:
            random = torch.rand(env.num_envs, len(low), generator=generator)
            _, _, terminated, truncated, _ = env.step(torch.lerp(low, high, random))
            ended = terminated | truncated
            if ended.any():
                env.reset(options={"reset_mask": ended})
        elapsed = time.perf_counter() - start
        model = env.task.model
    return Rate(calls.env_steps, elapsed), Rate(calls.env_steps, calls.replay(model, config.threads))


def measure_training(config: Config, seconds: float) -> tuple[Rate, Rate]:
    """Measures whole generations of training, all but the first, then the raw physics of one.

    Everything that es-train does is in it but the scoring: policy, observations, statistics, resets, update,
    metrics, checkpoints. The raw physics is `mujoco.batch` repeating the steps and resets of a generation,
    all slots in one batch.

    Returns:
        The rates of the loop and of its raw physics.
    """
    with training(config) as (trainer, train_one):
        train_one()
        before, start = trainer.env_steps, time.perf_counter()
        while trainer.env_steps == before or time.perf_counter() - start < seconds:
            train_one()
        loop = Rate(trainer.env_steps - before, time.perf_counter() - start)
    calls, model = record_physics(config)
    return loop, Rate(calls.env_steps, calls.replay(model, config.threads))


def _make_native(config: Config, num_envs: int) -> MujocoVectorEnv:
    env = make_vec(
        config.env.id,
        num_envs,
        engine=config.env.engine,
        threads=config.threads,
        info=False,
        **config.env.kwargs,
    )
    if not isinstance(env, MujocoVectorEnv):
        env.close()
        raise ValueError(f"{config.env.id} is no native task: there is no raw physics to compare with")
    return env


class GymnasiumContestant:
    """One of Gymnasium's vector environments under uniform random actions.

    It resets in the same step, so that every row of every step is live.
    """

    def __init__(self, kind: str, config: Config, num_envs: int, seed: int) -> None:
        def make() -> gym.Env[Any, Any]:
            return make_env(config.env.id, config.env.wrappers, disable_env_checker=True, **config.env.kwargs)

        vectorize = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}[kind]
        self.env = vectorize([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self.env.reset(seed=seed)
        self._rng = np.random.default_rng(seed)
        self._space = self.env.single_action_space
        for _ in range(WARMUP_STEPS):
            self._step()

    def _step(self) -> None:
        shape, space = self.env.action_space.shape, self._space
        self.env.step(self._rng.uniform(space.low, space.high, shape).astype(space.dtype))

    def measure(self, seconds: float) -> Rate:
        """Steps for about so many seconds."""
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or steps == 0:
            self._step()
            steps += 1
        return Rate(steps * self.env.num_envs, elapsed)

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def measure_env(config: Config, *, seconds: float, rounds: int, watch: Watch) -> list[dict[str, float]]:
    """Measures all contestants, one after the other, in `rounds` rounds.

    Args:
        config: environment, slots, policy, population and threads.
        seconds: least duration of each measurement.
        rounds: number of rounds.
        watch: see `report.Watch`.

    Returns:
        Live env steps/s of each contestant, by round.
    """
    num_envs, cores = config.env.num_envs, config.threads or available_cores()

    def native(index: int) -> Figures:
        environment, physics = measure_native(config, seconds, seed=index)
        return {RAW_RANDOM: physics.per_second, NATIVE: environment.per_second}

    def of_gymnasium(name: str, kind: str, size: int) -> Contestant:
        def measure(index: int) -> Figures:
            # Made anew each time: hundreds of idle processes would slow the others down.
            with closing(GymnasiumContestant(kind, config, size, seed=index)) as contestant:
                return {name: contestant.measure(seconds).per_second}

        return measure

    def training(index: int) -> Figures:
        loop, physics = measure_training(config, seconds)
        return {RAW_POLICY: physics.per_second, LOOP: loop.per_second}

    contestants = {
        NATIVE: native,
        SYNC: of_gymnasium(SYNC, "sync", num_envs),
        ASYNC: of_gymnasium(ASYNC, "async", num_envs),
        ASYNC_1: of_gymnasium(ASYNC_1, "async", cores),
        ASYNC_8: of_gymnasium(ASYNC_8, "async", 8 * cores),
        LOOP: training,
    }
    return interleave(contestants, rounds, watch)
